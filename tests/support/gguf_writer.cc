#include "tests/support/gguf_writer.h"

#include <algorithm>
#include <cstring>

namespace xcache::testing {
namespace {

template <typename T>
void Append(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(T));
}

void AppendString(std::string* out, std::string_view text) {
  Append<uint64_t>(out, text.size());
  out->append(text);
}

void Pad(std::string* out) { out->resize((out->size() + 31) / 32 * 32); }

}  // namespace

void GgufWriter::SetRaw(std::string_view key, uint32_t type,
                        std::string bytes) {
  const auto it = std::ranges::find(entries_, key, &Entry::key);
  if (it != entries_.end()) {
    it->type = type;
    it->bytes = std::move(bytes);
  } else {
    entries_.push_back({std::string(key), type, std::move(bytes)});
  }
}

void GgufWriter::Remove(std::string_view key) {
  std::erase_if(entries_, [key](const Entry& e) { return e.key == key; });
}

void GgufWriter::SetUint32(std::string_view key, uint32_t value) {
  std::string bytes;
  Append(&bytes, value);
  SetRaw(key, 4, std::move(bytes));
}

void GgufWriter::SetFloat(std::string_view key, float value) {
  std::string bytes;
  Append(&bytes, value);
  SetRaw(key, 6, std::move(bytes));
}

void GgufWriter::SetBool(std::string_view key, bool value) {
  SetRaw(key, 7, std::string(1, value ? 1 : 0));
}

void GgufWriter::SetString(std::string_view key, std::string_view value) {
  std::string bytes;
  AppendString(&bytes, value);
  SetRaw(key, 8, std::move(bytes));
}

void GgufWriter::SetStrings(std::string_view key,
                            std::span<const std::string> values) {
  std::string bytes;
  Append<uint32_t>(&bytes, 8);
  Append<uint64_t>(&bytes, values.size());
  for (const std::string& value : values) AppendString(&bytes, value);
  SetRaw(key, 9, std::move(bytes));
}

void GgufWriter::SetInts(std::string_view key,
                         std::span<const int32_t> values) {
  std::string bytes;
  Append<uint32_t>(&bytes, 5);
  Append<uint64_t>(&bytes, values.size());
  for (int32_t value : values) Append(&bytes, value);
  SetRaw(key, 9, std::move(bytes));
}

void GgufWriter::SetFloats(std::string_view key,
                           std::span<const float> values) {
  std::string bytes;
  Append<uint32_t>(&bytes, 6);
  Append<uint64_t>(&bytes, values.size());
  for (float value : values) Append(&bytes, value);
  SetRaw(key, 9, std::move(bytes));
}

void GgufWriter::SetTensor(std::string_view name, std::vector<int64_t> dims,
                           GgufType type, std::string bytes) {
  RemoveTensor(name);
  tensors_.push_back(
      {std::string(name), std::move(dims), type, std::move(bytes)});
}

void GgufWriter::RemoveTensor(std::string_view name) {
  std::erase_if(tensors_, [name](const Tensor& t) { return t.name == name; });
}

std::string GgufWriter::Finish() const {
  std::string out = "GGUF";
  Append(&out, version_);
  Append<uint64_t>(&out, tensors_.size());
  Append<uint64_t>(&out, entries_.size());
  for (const Entry& entry : entries_) {
    AppendString(&out, entry.key);
    Append(&out, entry.type);
    out += entry.bytes;
  }
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors_) {
    AppendString(&out, tensor.name);
    Append<uint32_t>(&out, static_cast<uint32_t>(tensor.dims.size()));
    for (int64_t dim : tensor.dims) Append(&out, dim);
    Append(&out, static_cast<uint32_t>(tensor.type));
    Append(&out, offset);
    offset += (tensor.bytes.size() + 31) / 32 * 32;
  }
  for (const Tensor& tensor : tensors_) {
    Pad(&out);
    out += tensor.bytes;
  }
  return out;
}

}  // namespace xcache::testing
