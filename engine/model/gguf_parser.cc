// Parses the bytes of a GGUF file. Everything here treats them as hostile: a
// count is compared with the bytes that are left before anything is allocated
// for it, and sums and products are checked before they are formed.
//
// Layout (ggml's docs/gguf.md), little-endian: magic, version, tensor count,
// metadata count; metadata; tensor infos; padding; tensor data.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/model/gguf.h"

namespace xcache {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint32_t kMaxDims = 4;  // GGML_MAX_DIMS

enum ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// Bytes of a fixed-size value, the least that any value of a type takes.
constexpr uint64_t kValueBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};

// The least that a metadata entry and a tensor info take: a one-byte name.
constexpr uint64_t kMinEntryBytes = 8 + 1 + 4 + 1;
constexpr uint64_t kMinTensorInfoBytes = 8 + 1 + 4 + 8 + 4 + 8;

// A name from the file as it may stand in a message.
std::string Printable(std::string_view name) {
  constexpr size_t kShown = 64;
  std::string shown = absl::CHexEscape(std::string(name.substr(0, kShown)));
  if (name.size() > kShown) shown += "...";
  return shown;
}

class Parser {
 public:
  Parser(std::span<const uint8_t> bytes, std::string_view name)
      : bytes_(bytes), name_(name) {}

  absl::Status ParseHeader(uint32_t* version);
  absl::Status ParseMetadata(
      std::map<std::string, GgufValue, std::less<>>* metadata,
      std::vector<GgufEntry>* entries);
  absl::StatusOr<uint64_t> Alignment(
      const std::map<std::string, GgufValue, std::less<>>& metadata) const;
  absl::Status ParseTensors(uint64_t alignment,
                            std::vector<GgufTensor>* tensors,
                            std::map<std::string_view, size_t>* index);

 private:
  struct TensorPlace {
    size_t info_offset;  // of its info, for messages
    uint64_t data_offset;
    uint64_t num_bytes;
  };

  template <typename... Args>
  absl::Status Bad(size_t offset, const Args&... args) const {
    return absl::InvalidArgumentError(
        absl::StrCat(name_, ": byte ", offset, ": ", args...));
  }
  uint64_t left() const { return bytes_.size() - pos_; }

  template <typename T>
  absl::StatusOr<T> Read(const char* what) {
    if (left() < sizeof(T)) {
      return Bad(pos_, what, ": expected ", sizeof(T),
                 " bytes, found the end of the file after ", left());
    }
    T value;
    std::memcpy(&value, bytes_.data() + pos_, sizeof(T));
    pos_ += sizeof(T);
    return value;
  }

  absl::StatusOr<std::string_view> ReadString(const char* what) {
    const size_t start = pos_;
    XC_ASSIGN_OR_RETURN(const uint64_t size, Read<uint64_t>(what));
    if (size > left()) {
      return Bad(start, what, ": expected a length of at most ", left(),
                 " (what is left of the file), found ", size);
    }
    const std::string_view text(
        reinterpret_cast<const char*>(bytes_.data() + pos_), size);
    pos_ += size;
    return text;
  }

  absl::StatusOr<std::string_view> ReadName(const char* what) {
    const size_t start = pos_;
    XC_ASSIGN_OR_RETURN(const std::string_view text, ReadString(what));
    if (text.empty()) return Bad(start, what, ": expected a name, found none");
    return text;
  }

  absl::StatusOr<bool> ReadBool(const char* what) {
    XC_ASSIGN_OR_RETURN(const uint8_t value, Read<uint8_t>(what));
    if (value > 1) {
      return Bad(pos_ - 1, what, ": expected a bool, 0 or 1, found ",
                 uint32_t{value});
    }
    return value == 1;
  }

  absl::StatusOr<GgufValue> ReadScalar(uint32_t type);
  absl::StatusOr<GgufValue> ReadArray();
  template <typename Wide, typename Narrow>
  GgufValue ReadNumbers(uint64_t count);
  absl::StatusOr<GgufTensor> ReadTensorInfo(TensorPlace* place);
  absl::Status CheckOverlaps(const std::vector<GgufTensor>& tensors,
                             const std::vector<TensorPlace>& places) const;

  const std::span<const uint8_t> bytes_;
  const std::string name_;
  size_t pos_ = 0;
  uint64_t num_tensors_ = 0;
  uint64_t num_entries_ = 0;
};

absl::Status Parser::ParseHeader(uint32_t* version) {
  XC_ASSIGN_OR_RETURN(const uint32_t magic, Read<uint32_t>("magic"));
  if (magic != kMagic) {
    return Bad(0, "magic: expected \"GGUF\", found \"",
               absl::CHexEscape(std::string(
                   reinterpret_cast<const char*>(bytes_.data()), 4)),
               "\"");
  }
  XC_ASSIGN_OR_RETURN(*version, Read<uint32_t>("version"));
  if (*version != 2 && *version != 3) {
    const bool swapped = *version != 0 && (*version & 0xffff) == 0;
    return Bad(4, "version: expected 2 or 3, found ", *version,
               swapped ? " (a big-endian file?)" : "");
  }
  const size_t counts_at = pos_;
  XC_ASSIGN_OR_RETURN(num_tensors_, Read<uint64_t>("tensor count"));
  XC_ASSIGN_OR_RETURN(num_entries_, Read<uint64_t>("metadata count"));
  if (num_tensors_ > left() / kMinTensorInfoBytes) {
    return Bad(counts_at, "tensor count: expected at most ",
               left() / kMinTensorInfoBytes, " in the ", left(),
               " bytes that follow, found ", num_tensors_);
  }
  if (num_entries_ > left() / kMinEntryBytes) {
    return Bad(counts_at + 8, "metadata count: expected at most ",
               left() / kMinEntryBytes, " in the ", left(),
               " bytes that follow, found ", num_entries_);
  }
  return absl::OkStatus();
}

absl::StatusOr<GgufValue> Parser::ReadScalar(uint32_t type) {
  constexpr char kWhat[] = "metadata value";
  switch (type) {
#define XC_SCALAR(TYPE, NARROW, WIDE)                             \
  case TYPE: {                                                    \
    XC_ASSIGN_OR_RETURN(const NARROW value, Read<NARROW>(kWhat)); \
    return GgufValue(std::in_place_type<WIDE>, value);            \
  }
    XC_SCALAR(kUint8, uint8_t, uint64_t)
    XC_SCALAR(kInt8, int8_t, int64_t)
    XC_SCALAR(kUint16, uint16_t, uint64_t)
    XC_SCALAR(kInt16, int16_t, int64_t)
    XC_SCALAR(kUint32, uint32_t, uint64_t)
    XC_SCALAR(kInt32, int32_t, int64_t)
    XC_SCALAR(kFloat32, float, double)
    XC_SCALAR(kUint64, uint64_t, uint64_t)
    XC_SCALAR(kInt64, int64_t, int64_t)
    XC_SCALAR(kFloat64, double, double)
#undef XC_SCALAR
    case kBool: {
      XC_ASSIGN_OR_RETURN(const bool value, ReadBool(kWhat));
      return GgufValue(value);
    }
    case kString: {
      XC_ASSIGN_OR_RETURN(const std::string_view text, ReadString(kWhat));
      return GgufValue(std::string(text));
    }
    case kArray:
      return ReadArray();
    default:
      return Bad(pos_ - 4, "metadata value type: expected 0 to 12, found ",
                 type);
  }
}

// REQUIRES: count * sizeof(Narrow) <= left().
template <typename Wide, typename Narrow>
GgufValue Parser::ReadNumbers(uint64_t count) {
  std::vector<Wide> values(count);
  for (Wide& value : values) {
    Narrow narrow;
    std::memcpy(&narrow, bytes_.data() + pos_, sizeof(Narrow));
    pos_ += sizeof(Narrow);
    value = narrow;
  }
  return values;
}

absl::StatusOr<GgufValue> Parser::ReadArray() {
  const size_t start = pos_;
  XC_ASSIGN_OR_RETURN(const uint32_t type, Read<uint32_t>("array type"));
  XC_ASSIGN_OR_RETURN(const uint64_t count, Read<uint64_t>("array length"));
  if (type >= std::size(kValueBytes) || type == kArray) {
    return Bad(start, "array type: expected 0 to 8 or 10 to 12, found ", type,
               type == kArray ? " (an array of arrays)" : "");
  }
  if (count > left() / kValueBytes[type]) {
    return Bad(start + 4, "array length: expected at most ",
               left() / kValueBytes[type], " in the ", left(),
               " bytes that follow, found ", count);
  }
  switch (type) {
    case kUint8:
      return ReadNumbers<uint64_t, uint8_t>(count);
    case kInt8:
      return ReadNumbers<int64_t, int8_t>(count);
    case kUint16:
      return ReadNumbers<uint64_t, uint16_t>(count);
    case kInt16:
      return ReadNumbers<int64_t, int16_t>(count);
    case kUint32:
      return ReadNumbers<uint64_t, uint32_t>(count);
    case kInt32:
      return ReadNumbers<int64_t, int32_t>(count);
    case kFloat32:
      return ReadNumbers<double, float>(count);
    case kUint64:
      return ReadNumbers<uint64_t, uint64_t>(count);
    case kInt64:
      return ReadNumbers<int64_t, int64_t>(count);
    case kFloat64:
      return ReadNumbers<double, double>(count);
    case kBool: {
      std::vector<bool> values;
      values.reserve(count);
      for (uint64_t i = 0; i < count; ++i) {
        XC_ASSIGN_OR_RETURN(const bool value, ReadBool("array element"));
        values.push_back(value);
      }
      return GgufValue(std::move(values));
    }
    default: {  // kString
      std::vector<std::string> values;
      values.reserve(count);
      for (uint64_t i = 0; i < count; ++i) {
        XC_ASSIGN_OR_RETURN(const std::string_view text,
                            ReadString("array element"));
        values.emplace_back(text);
      }
      return GgufValue(std::move(values));
    }
  }
}

absl::Status Parser::ParseMetadata(
    std::map<std::string, GgufValue, std::less<>>* metadata,
    std::vector<GgufEntry>* entries) {
  for (uint64_t i = 0; i < num_entries_; ++i) {
    const size_t start = pos_;
    XC_ASSIGN_OR_RETURN(const std::string_view key, ReadName("metadata key"));
    XC_ASSIGN_OR_RETURN(const uint32_t type,
                        Read<uint32_t>("metadata value type"));
    XC_ASSIGN_OR_RETURN(GgufValue value, ReadScalar(type));
    if (!metadata->emplace(std::string(key), std::move(value)).second) {
      return Bad(start, "metadata key ", Printable(key),
                 ": expected once, found again");
    }
    entries->push_back({key, bytes_.subspan(start, pos_ - start)});
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> Parser::Alignment(
    const std::map<std::string, GgufValue, std::less<>>& metadata) const {
  const auto it = metadata.find("general.alignment");
  if (it == metadata.end()) return kDefaultAlignment;
  const auto* value = std::get_if<uint64_t>(&it->second);
  if (value == nullptr || *value < 8 || !std::has_single_bit(*value) ||
      *value > bytes_.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        name_,
        ": metadata key general.alignment: expected a power of two "
        "from 8 up to the file's size, found ",
        value == nullptr ? "another type" : absl::StrCat(*value)));
  }
  return *value;
}

absl::StatusOr<GgufTensor> Parser::ReadTensorInfo(TensorPlace* place) {
  place->info_offset = pos_;
  GgufTensor tensor;
  XC_ASSIGN_OR_RETURN(const std::string_view name, ReadName("tensor name"));
  tensor.name = std::string(name);
  const std::string what = absl::StrCat("tensor ", Printable(name));
  XC_ASSIGN_OR_RETURN(const uint32_t num_dims,
                      Read<uint32_t>("tensor dimension count"));
  if (num_dims < 1 || num_dims > kMaxDims) {
    return Bad(pos_ - 4, what, ": expected 1 to ", kMaxDims,
               " dimensions, found ", num_dims);
  }
  uint64_t num_elements = 1;
  for (uint32_t d = 0; d < num_dims; ++d) {
    XC_ASSIGN_OR_RETURN(const uint64_t dim, Read<uint64_t>("tensor dimension"));
    constexpr uint64_t kMax = std::numeric_limits<int64_t>::max();
    if (dim < 1 || dim > kMax / num_elements) {
      return Bad(pos_ - 8, what, ": dimension ", d, ": expected 1 to ",
                 kMax / num_elements, ", found ", dim);
    }
    num_elements *= dim;
    tensor.dims.push_back(static_cast<int64_t>(dim));
  }
  XC_ASSIGN_OR_RETURN(const uint32_t type, Read<uint32_t>("tensor type"));
  tensor.type = static_cast<GgufType>(type);
  const std::optional<GgufTypeInfo> info = InfoOf(tensor.type);
  if (!info) {
    return absl::UnimplementedError(absl::StrCat(
        name_, ": byte ", pos_ - 4, ": ", what,
        ": expected a type of F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, "
        "Q4_K, Q5_K, Q6_K, found type number ",
        type));
  }
  const auto block_elements = static_cast<uint64_t>(info->block_elements);
  const auto block_bytes = static_cast<uint64_t>(info->block_bytes);
  const auto row_elements = static_cast<uint64_t>(tensor.dims[0]);
  if (row_elements % block_elements != 0) {
    return Bad(place->info_offset, what, ": expected rows of a multiple of ",
               block_elements, " elements (type ", std::string(info->name),
               "), found ", row_elements);
  }
  const uint64_t num_blocks = num_elements / block_elements;
  if (num_blocks > bytes_.size() / block_bytes) {
    return Bad(place->info_offset, what, ": expected at most ", bytes_.size(),
               " bytes (the file's size), found ", num_blocks, " blocks of ",
               block_bytes);
  }
  place->num_bytes = num_blocks * block_bytes;
  XC_ASSIGN_OR_RETURN(place->data_offset, Read<uint64_t>("tensor offset"));
  return tensor;
}

absl::Status Parser::CheckOverlaps(
    const std::vector<GgufTensor>& tensors,
    const std::vector<TensorPlace>& places) const {
  std::vector<size_t> order(places.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return places[a].data_offset < places[b].data_offset;
  });
  for (size_t i = 1; i < order.size(); ++i) {
    const TensorPlace& before = places[order[i - 1]];
    const TensorPlace& here = places[order[i]];
    if (here.data_offset < before.data_offset + before.num_bytes) {
      return Bad(
          here.info_offset, "tensor ", Printable(tensors[order[i]].name),
          ": expected an offset of ", before.data_offset + before.num_bytes,
          " or more, behind tensor ", Printable(tensors[order[i - 1]].name),
          ", found ", here.data_offset);
    }
  }
  return absl::OkStatus();
}

absl::Status Parser::ParseTensors(uint64_t alignment,
                                  std::vector<GgufTensor>* tensors,
                                  std::map<std::string_view, size_t>* index) {
  std::vector<TensorPlace> places;
  for (uint64_t i = 0; i < num_tensors_; ++i) {
    TensorPlace place{};
    XC_ASSIGN_OR_RETURN(GgufTensor tensor, ReadTensorInfo(&place));
    if (place.data_offset % alignment != 0) {
      return Bad(pos_ - 8, "tensor ", Printable(tensor.name),
                 ": expected an offset that is a multiple of ", alignment,
                 ", found ", place.data_offset);
    }
    tensors->push_back(std::move(tensor));
    places.push_back(place);
  }

  // pos_ and the alignment are at most the size (or 32): no overflow.
  const uint64_t data_start = (pos_ + alignment - 1) / alignment * alignment;
  const uint64_t data_bytes =
      data_start <= bytes_.size() ? bytes_.size() - data_start : 0;
  for (size_t i = 0; i < tensors->size(); ++i) {
    GgufTensor& tensor = (*tensors)[i];
    const TensorPlace& place = places[i];
    if (place.data_offset > data_bytes ||
        place.num_bytes > data_bytes - place.data_offset) {
      return Bad(place.info_offset, "tensor ", Printable(tensor.name),
                 ": expected ", place.num_bytes, " bytes at offset ",
                 place.data_offset, " of the tensor data, found only ",
                 data_bytes, " bytes of it in the file");
    }
    tensor.bytes =
        bytes_.subspan(data_start + place.data_offset, place.num_bytes);
    if (!index->emplace(tensor.name, i).second) {
      return Bad(place.info_offset, "tensor ", Printable(tensor.name),
                 ": expected once, found again");
    }
  }
  return CheckOverlaps(*tensors, places);
}

class ParsedGguf : public GgufFile {
 public:
  absl::Status Parse(std::span<const uint8_t> bytes, std::string_view name) {
    path_ = std::string(name);
    bytes_ = bytes;
    Parser parser(bytes, name);
    XC_RETURN_IF_ERROR(parser.ParseHeader(&version_));
    XC_RETURN_IF_ERROR(parser.ParseMetadata(&metadata_, &entries_));
    XC_ASSIGN_OR_RETURN(alignment_, parser.Alignment(metadata_));
    return parser.ParseTensors(alignment_, &tensors_, &tensor_index_);
  }

  absl::Status Own(FileBytes bytes, const Digest& digest,
                   const std::string& path) {
    file_ = std::move(bytes);
    digest_ = digest;
    return Parse(file_->bytes(), path);
  }
};

// What is no GGUF is refused before all of it is read.
absl::Status CheckStart(std::span<const uint8_t> start,
                        const std::string& path) {
  uint32_t magic = 0;
  if (start.size() >= sizeof(magic)) {
    std::memcpy(&magic, start.data(), sizeof(magic));
  }
  if (magic == kMagic) return absl::OkStatus();
  // The header's own words for it.
  uint32_t version = 0;
  return Parser(start, path).ParseHeader(&version);
}

}  // namespace

absl::StatusOr<std::unique_ptr<const GgufFile>> GgufFile::Open(
    const std::string& path) {
  Digest digest;
  XC_ASSIGN_OR_RETURN(FileBytes bytes, FileBytes::Read(
                                           path,
                                           [&](std::span<const uint8_t> start) {
                                             return CheckStart(start, path);
                                           },
                                           &digest));
  auto file = std::make_unique<ParsedGguf>();
  XC_RETURN_IF_ERROR(file->Own(std::move(bytes), digest, path));
  return file;
}

absl::StatusOr<std::unique_ptr<const GgufFile>> GgufFile::Parse(
    std::span<const uint8_t> bytes, std::string_view name) {
  auto file = std::make_unique<ParsedGguf>();
  XC_RETURN_IF_ERROR(file->Parse(bytes, name));
  return file;
}

}  // namespace xcache
