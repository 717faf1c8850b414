// Accessors of a parsed file, and the table of tensor types. The bytes are read
// in gguf_parser.cc.
#include "engine/model/gguf.h"

#include <limits>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

constexpr std::string_view kValueTypeNames[] = {"bool",
                                                "integer",
                                                "unsigned integer",
                                                "float",
                                                "string",
                                                "array of bool",
                                                "array of integers",
                                                "array of unsigned integers",
                                                "array of floats",
                                                "array of strings"};
static_assert(std::size(kValueTypeNames) == std::variant_size_v<GgufValue>);

}  // namespace

std::optional<GgufTypeInfo> InfoOf(GgufType type) {
  // Block layouts: ggml's ggml-common.h (block_q4_0 ... block_q6_K).
  switch (type) {
    case GgufType::kF32:
      return GgufTypeInfo{"F32", 1, 4};
    case GgufType::kF16:
      return GgufTypeInfo{"F16", 1, 2};
    case GgufType::kBF16:
      return GgufTypeInfo{"BF16", 1, 2};
    case GgufType::kQ4_0:  // fp16 d, 16 bytes of nibbles
      return GgufTypeInfo{"Q4_0", 32, 2 + 16};
    case GgufType::kQ4_1:  // fp16 d, fp16 min, nibbles
      return GgufTypeInfo{"Q4_1", 32, 4 + 16};
    case GgufType::kQ5_0:  // fp16 d, 32 fifth bits, nibbles
      return GgufTypeInfo{"Q5_0", 32, 2 + 4 + 16};
    case GgufType::kQ5_1:
      return GgufTypeInfo{"Q5_1", 32, 4 + 4 + 16};
    case GgufType::kQ8_0:  // fp16 d, int8
      return GgufTypeInfo{"Q8_0", 32, 2 + 32};
    case GgufType::kQ2_K:  // 16 x (4-bit scale, min), bit pairs, fp16 d, dmin
      return GgufTypeInfo{"Q2_K", 256, 16 + 64 + 4};
    case GgufType::kQ3_K:  // third bits, bit pairs, 16 6-bit scales, fp16 d
      return GgufTypeInfo{"Q3_K", 256, 32 + 64 + 12 + 2};
    case GgufType::kQ4_K:  // fp16 d, fp16 dmin, 8 x (6-bit scale, min), nibbles
      return GgufTypeInfo{"Q4_K", 256, 4 + 12 + 128};
    case GgufType::kQ5_K:
      return GgufTypeInfo{"Q5_K", 256, 4 + 12 + 32 + 128};
    case GgufType::kQ6_K:  // low nibbles, high bit pairs, 16 int8 scales, fp16
                           // d
      return GgufTypeInfo{"Q6_K", 256, 128 + 64 + 16 + 2};
    case GgufType::kIQ4_NL:  // fp16 d, nibbles
      return GgufTypeInfo{"IQ4_NL", 32, 2 + 16};
    case GgufType::kIQ4_XS:  // fp16 d, 8 6-bit scales, nibbles
      return GgufTypeInfo{"IQ4_XS", 256, 2 + 2 + 4 + 128};
  }
  return std::nullopt;
}

Digest GgufFile::fingerprint() const {
  if (digest_.has_value()) return *digest_;
  return Sha256().Update(bytes_.data(), bytes_.size()).Finish();
}

const GgufTensor* GgufFile::FindTensor(std::string_view name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

bool GgufFile::Has(std::string_view key) const {
  return metadata_.find(key) != metadata_.end();
}

absl::StatusOr<const GgufValue*> GgufFile::Find(std::string_view key) const {
  const auto it = metadata_.find(key);
  if (it == metadata_.end()) {
    return absl::NotFoundError(
        absl::StrCat(path_, ": no metadata key ", std::string(key)));
  }
  return &it->second;
}

absl::Status GgufFile::WrongType(std::string_view key,
                                 std::string_view expected,
                                 const GgufValue& found) const {
  return absl::InvalidArgumentError(
      absl::StrCat(path_, ": metadata key ", std::string(key), ": expected ",
                   std::string(expected), ", found ",
                   std::string(kValueTypeNames[found.index()])));
}

absl::StatusOr<std::string> GgufFile::GetString(std::string_view key) const {
  XC_ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (const auto* s = std::get_if<std::string>(value)) return *s;
  return WrongType(key, "a string", *value);
}

absl::StatusOr<int64_t> GgufFile::GetInt(std::string_view key) const {
  XC_ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (const auto* i = std::get_if<int64_t>(value)) return *i;
  if (const auto* u = std::get_if<uint64_t>(value)) {
    if (*u <= uint64_t{std::numeric_limits<int64_t>::max()}) {
      return static_cast<int64_t>(*u);
    }
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": metadata key ", std::string(key),
                     ": expected at most 2^63-1, found ", *u));
  }
  return WrongType(key, "an integer", *value);
}

absl::StatusOr<double> GgufFile::GetFloat(std::string_view key) const {
  XC_ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (const auto* f = std::get_if<double>(value)) return *f;
  return WrongType(key, "a float", *value);
}

absl::StatusOr<bool> GgufFile::GetBool(std::string_view key) const {
  XC_ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (const auto* b = std::get_if<bool>(value)) return *b;
  return WrongType(key, "a bool", *value);
}

absl::StatusOr<std::span<const std::string>> GgufFile::GetStrings(
    std::string_view key) const {
  XC_ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (const auto* v = std::get_if<std::vector<std::string>>(value)) return *v;
  return WrongType(key, "an array of strings", *value);
}

absl::StatusOr<std::span<const double>> GgufFile::GetFloats(
    std::string_view key) const {
  XC_ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (const auto* v = std::get_if<std::vector<double>>(value)) return *v;
  return WrongType(key, "an array of floats", *value);
}

absl::StatusOr<std::vector<int64_t>> GgufFile::GetInts(
    std::string_view key) const {
  XC_ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (const auto* v = std::get_if<std::vector<int64_t>>(value)) return *v;
  if (const auto* u = std::get_if<std::vector<uint64_t>>(value)) {
    std::vector<int64_t> out;
    out.reserve(u->size());
    for (uint64_t x : *u) {
      if (x > uint64_t{std::numeric_limits<int64_t>::max()}) {
        return absl::InvalidArgumentError(
            absl::StrCat(path_, ": metadata key ", std::string(key),
                         ": expected at most 2^63-1, found ", x));
      }
      out.push_back(static_cast<int64_t>(x));
    }
    return out;
  }
  return WrongType(key, "an array of integers", *value);
}

}  // namespace xcache
