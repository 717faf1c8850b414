#include "engine/model/expand_heads.h"

#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint32_t kUint32 = 4;          // the file's number for this type

template <typename T>
void Append(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(T));
}

void AppendString(std::string* out, std::string_view text) {
  Append<uint64_t>(out, text.size());
  out->append(text);
}

uint64_t RoundUp(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// One tensor of the new file. `bytes` are those of its heads, each of which is
// written `times` times, one after the other: query head h reads K/V head
// h / times of the old file and h of the new one.
struct NewTensor {
  std::string_view name;
  std::vector<int64_t> dims;
  GgufType type;
  std::span<const uint8_t> bytes;
  size_t num_heads = 1;
  size_t times = 1;

  uint64_t num_bytes() const { return uint64_t{bytes.size()} * times; }
};

std::vector<NewTensor> Expand(const Model& model) {
  const HyperParams& h = model.hparams();
  std::set<std::string_view> of_kv_heads;
  for (int i = 0; i < h.num_layers; ++i) {
    const LayerTensors& layer = model.layer(i);
    of_kv_heads.insert({layer.wk.name, layer.wv.name});
    for (const std::optional<TensorView>* bias : {&layer.bk, &layer.bv}) {
      if (bias->has_value()) of_kv_heads.insert((*bias)->name);
    }
  }
  std::vector<NewTensor> tensors;
  for (const GgufTensor& tensor : model.gguf().tensors()) {
    NewTensor& out = tensors.emplace_back(
        NewTensor{tensor.name, tensor.dims, tensor.type, tensor.bytes});
    if (!of_kv_heads.contains(tensor.name)) continue;
    out.num_heads = static_cast<size_t>(h.n_kv_heads);
    out.times = static_cast<size_t>(h.n_heads / h.n_kv_heads);
    out.dims.back() = int64_t{h.n_heads} * h.head_dim;
  }
  return tensors;
}

class OutputFile {
 public:
  explicit OutputFile(const std::string& path)
      : path_(path), part_(path + ".part") {
    file_ = std::fopen(part_.c_str(), "wb");
    if (file_ == nullptr) Fail();
  }
  ~OutputFile() {
    if (file_ == nullptr) return;
    std::fclose(file_);
    std::remove(part_.c_str());
  }

  void Write(const void* data, size_t size) {
    if (!status_.ok() || size == 0) return;
    if (std::fwrite(data, 1, size, file_) != size) return Fail();
    written_ += size;
  }
  void PadTo(uint64_t multiple) {
    const std::string zeros(RoundUp(written_, multiple) - written_, '\0');
    Write(zeros.data(), zeros.size());
  }

  // Moves the file to its place if it is a model.
  absl::Status Finish() {
    if (status_.ok() &&
        (std::fflush(file_) != 0 || ::fsync(::fileno(file_)) != 0)) {
      Fail();
    }
    XC_RETURN_IF_ERROR(status_);
    XC_RETURN_IF_ERROR(Model::Load(part_).status());
    if (std::rename(part_.c_str(), path_.c_str()) != 0) Fail();
    XC_RETURN_IF_ERROR(status_);
    std::fclose(file_);
    file_ = nullptr;
    return absl::OkStatus();
  }

 private:
  void Fail() {
    const std::string message =
        absl::StrCat(part_, ": cannot write: ", std::strerror(errno));
    status_ = errno == ENOSPC ? absl::ResourceExhaustedError(message)
                              : absl::PermissionDeniedError(message);
  }

  const std::string path_, part_;
  std::FILE* file_ = nullptr;
  uint64_t written_ = 0;
  absl::Status status_;
};

std::string Header(const GgufFile& gguf, const HyperParams& h,
                   const std::vector<NewTensor>& tensors) {
  const std::string heads_key =
      absl::StrCat(h.architecture, ".attention.head_count_kv");
  std::string out;
  Append(&out, kMagic);
  Append(&out, gguf.version());
  Append<uint64_t>(&out, tensors.size());
  Append<uint64_t>(&out, gguf.entries().size());
  for (const GgufEntry& entry : gguf.entries()) {
    if (entry.key == heads_key) {
      AppendString(&out, heads_key);
      Append(&out, kUint32);
      Append(&out, static_cast<uint32_t>(h.n_heads));
    } else {
      out.append(reinterpret_cast<const char*>(entry.bytes.data()),
                 entry.bytes.size());
    }
  }
  uint64_t offset = 0;
  for (const NewTensor& tensor : tensors) {
    AppendString(&out, tensor.name);
    Append(&out, static_cast<uint32_t>(tensor.dims.size()));
    for (int64_t dim : tensor.dims) Append(&out, dim);
    Append(&out, static_cast<uint32_t>(tensor.type));
    Append(&out, offset);
    offset = RoundUp(offset + tensor.num_bytes(), gguf.alignment());
  }
  return out;
}

}  // namespace

absl::Status WriteExpandedHeads(const Model& model, const std::string& path) {
  const HyperParams& h = model.hparams();
  const GgufFile& gguf = model.gguf();
  if (h.n_kv_heads == h.n_heads) {
    return absl::InvalidArgumentError(absl::StrCat(
        gguf.path(), ": expected fewer K/V heads than query heads (GQA), ",
        "found ", h.n_kv_heads, " of each: an MHA model already"));
  }
  const std::vector<NewTensor> tensors = Expand(model);
  OutputFile out(path);
  const std::string header = Header(gguf, h, tensors);
  out.Write(header.data(), header.size());
  for (const NewTensor& tensor : tensors) {
    out.PadTo(gguf.alignment());
    const size_t head_bytes = tensor.bytes.size() / tensor.num_heads;
    for (size_t head = 0; head < tensor.num_heads; ++head) {
      for (size_t i = 0; i < tensor.times; ++i) {
        out.Write(tensor.bytes.data() + head * head_bytes, head_bytes);
      }
    }
  }
  // Readers take a last tensor's padding for granted.
  out.PadTo(gguf.alignment());
  return out.Finish();
}

}  // namespace xcache
