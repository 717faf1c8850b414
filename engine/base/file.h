// Files read whole. What is read belongs to the process: cut short, written
// over or deleted afterwards, a file changes nothing here, and it never raises
// SIGBUS as a mapping of it would.
#ifndef XCACHE_ENGINE_BASE_FILE_H_
#define XCACHE_ENGINE_BASE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/sha256.h"

namespace xcache {

// What tells whether a path still leads to the file that was read, as it was.
struct FileStamp {
  uint64_t device = 0;
  uint64_t inode = 0;
  int64_t size = 0;
  int64_t modified_ns = 0;  // of the Unix epoch

  bool operator==(const FileStamp&) const = default;
};

// NOT_FOUND, or what else stat says.
absl::StatusOr<FileStamp> StampOf(const std::string& path);

// A small regular file whole. NOT_FOUND, PERMISSION_DENIED or INVALID_ARGUMENT
// (not a regular file, empty, larger than `max_bytes`); the message starts with
// `path`.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          size_t max_bytes);
// The same of a file that others on this machine must have no right to:
// PERMISSION_DENIED where they do.
absl::StatusOr<std::string> ReadSecretFile(const std::string& path,
                                           size_t max_bytes);

// All bytes of a regular file, in memory of its own: for large ones. Movable.
class FileBytes {
 public:
  // Refuses a file, by its first bytes, before the rest is read.
  using CheckFn = std::function<absl::Status(std::span<const uint8_t> start)>;
  // How many bytes of it CheckFn sees, where it has as many.
  static constexpr size_t kStartBytes = 4096;

  // NOT_FOUND; INVALID_ARGUMENT (no regular file, empty, or it may not be
  // read); FAILED_PRECONDITION (it changed while it was read);
  // RESOURCE_EXHAUSTED; what `check` says. `sha256`, where not null: of all
  // bytes, computed by another thread while they are being read.
  static absl::StatusOr<FileBytes> Read(const std::string& path,
                                        const CheckFn& check,
                                        Digest* sha256 = nullptr);

  FileBytes() = default;
  ~FileBytes();
  FileBytes(FileBytes&& other) noexcept;
  FileBytes& operator=(FileBytes&& other) noexcept;

  std::span<const uint8_t> bytes() const { return {data_, size_}; }
  const FileStamp& stamp() const { return stamp_; }
  // Gives back the memory of the whole pages within `part`, which nobody may
  // touch again: whoever does gets SIGSEGV, never other bytes. Thread-safe.
  void Release(std::span<const uint8_t> part) const;

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  FileStamp stamp_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_BASE_FILE_H_
