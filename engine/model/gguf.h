// Reads GGUF v2 and v3 files (ggml's model container) into memory. Checks
// every length and offset against the file before it is used; knows nothing of
// what the keys mean.
#ifndef XCACHE_ENGINE_MODEL_GGUF_H_
#define XCACHE_ENGINE_MODEL_GGUF_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/file.h"
#include "engine/base/sha256.h"

namespace xcache {

// Element types of tensors; values are those of the file format.
enum class GgufType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ4_NL = 20,
  kIQ4_XS = 23,
  kBF16 = 30,
};

struct GgufTypeInfo {
  std::string_view name;
  int block_elements;  // elements that share scales
  int block_bytes;
};
// nullopt for a type that this reader does not know.
std::optional<GgufTypeInfo> InfoOf(GgufType type);

struct GgufTensor {
  std::string name;
  GgufType type = GgufType::kF32;
  std::vector<int64_t> dims;       // ne[0] (contiguous) first
  std::span<const uint8_t> bytes;  // 8-byte aligned in a file that was opened
};

// A metadata value. Integers of every width are widened; arrays are
// homogeneous.
using GgufValue =
    std::variant<bool, int64_t, uint64_t, double, std::string,
                 std::vector<bool>, std::vector<int64_t>, std::vector<uint64_t>,
                 std::vector<double>, std::vector<std::string>>;

// A metadata entry as it stands in the file.
struct GgufEntry {
  std::string_view key;
  std::span<const uint8_t> bytes;  // key, type and value
};

class GgufFile {
 public:
  // NOT_FOUND (no such file), INVALID_ARGUMENT saying what was expected and
  // found, and at which byte, or UNIMPLEMENTED (a tensor of a type that is not
  // in GgufType); FAILED_PRECONDITION: it changed while it was read. The file
  // is read once: what becomes of it afterwards changes nothing here.
  static absl::StatusOr<std::unique_ptr<const GgufFile>> Open(
      const std::string& path);
  // The same, of bytes in memory, which must outlive the file. `name` stands
  // for the path in messages. Memory used beyond `bytes` is at most a small
  // multiple of their number, whatever they say.
  static absl::StatusOr<std::unique_ptr<const GgufFile>> Parse(
      std::span<const uint8_t> bytes, std::string_view name);

  virtual ~GgufFile() = default;

  uint32_t version() const { return version_; }
  const std::string& path() const { return path_; }
  std::span<const uint8_t> bytes() const { return bytes_; }  // the whole file
  // SHA-256 of them; of bytes that were given it is computed by each call.
  Digest fingerprint() const;
  // Of the file as it was read; nothing for bytes that were given.
  std::optional<FileStamp> stamp() const {
    return file_.has_value() ? std::optional(file_->stamp()) : std::nullopt;
  }
  // Gives back the memory of a tensor's bytes, which nobody may touch again.
  // Does nothing for bytes that were given. Thread-safe.
  void Release(std::span<const uint8_t> tensor_bytes) const {
    if (file_.has_value()) file_->Release(tensor_bytes);
  }
  const std::map<std::string, GgufValue, std::less<>>& metadata() const {
    return metadata_;
  }
  // The same in the file's order, for who writes a file of it.
  const std::vector<GgufEntry>& entries() const { return entries_; }
  // The multiple at which each tensor's bytes begin.
  uint64_t alignment() const { return alignment_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  // nullptr where there is none of that name.
  const GgufTensor* FindTensor(std::string_view name) const;

  // A key's value. Of another type: INVALID_ARGUMENT; absent: NOT_FOUND.
  absl::StatusOr<std::string> GetString(std::string_view key) const;
  absl::StatusOr<int64_t> GetInt(std::string_view key) const;
  absl::StatusOr<double> GetFloat(std::string_view key) const;
  absl::StatusOr<bool> GetBool(std::string_view key) const;
  bool Has(std::string_view key) const;
  // An array of strings, borrowed from this file.
  absl::StatusOr<std::span<const std::string>> GetStrings(
      std::string_view key) const;
  absl::StatusOr<std::span<const double>> GetFloats(std::string_view key) const;
  // An array of integers, signed or not.
  absl::StatusOr<std::vector<int64_t>> GetInts(std::string_view key) const;

 protected:
  GgufFile() = default;

  absl::StatusOr<const GgufValue*> Find(std::string_view key) const;
  absl::Status WrongType(std::string_view key, std::string_view expected,
                         const GgufValue& found) const;

  uint32_t version_ = 0;
  std::string path_;
  std::optional<FileBytes> file_;  // where it was opened
  std::optional<Digest> digest_;   // of all bytes, there
  std::span<const uint8_t> bytes_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<GgufEntry> entries_;  // borrows from bytes_
  uint64_t alignment_ = 0;
  std::vector<GgufTensor> tensors_;
  std::map<std::string_view, size_t> tensor_index_;  // keys live in tensors_
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_MODEL_GGUF_H_
