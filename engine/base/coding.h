// Little-endian fields, written to and read from strings: what every record of
// the store is made of. Reading checks every length; it never allocates more
// than the input holds.
#ifndef XCACHE_ENGINE_BASE_CODING_H_
#define XCACHE_ENGINE_BASE_CODING_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "engine/base/sha256.h"

namespace xcache {

class FieldWriter {
 public:
  explicit FieldWriter(std::string& out) : out_(out) {}

  template <typename T>
  void Int(T value) {
    static_assert(std::is_integral_v<T>);
    auto bits = static_cast<std::make_unsigned_t<T>>(value);
    for (size_t i = 0; i < sizeof(T); ++i) {
      out_.push_back(static_cast<char>((uint64_t{bits} >> (8 * i)) & 0xff));
    }
  }
  void Raw(std::string_view bytes) { out_.append(bytes); }
  void Hash(const Digest& digest) {
    out_.append(reinterpret_cast<const char*>(digest.data()), digest.size());
  }
  // A u32 length, then the bytes.
  void Bytes(std::string_view bytes) {
    Int(static_cast<uint32_t>(bytes.size()));
    Raw(bytes);
  }

 private:
  std::string& out_;
};

// After the first field that does not fit, ok() is false and every field reads
// as zero or empty.
class FieldReader {
 public:
  explicit FieldReader(std::string_view in) : in_(in) {}

  template <typename T>
  T Int() {
    static_assert(std::is_integral_v<T>);
    const std::string_view bytes = Raw(sizeof(T));
    uint64_t bits = 0;
    for (size_t i = 0; i < bytes.size(); ++i) {
      bits |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
    }
    return static_cast<T>(bits);
  }
  std::string_view Raw(size_t num_bytes) {
    if (!ok_ || num_bytes > in_.size() - at_) {
      ok_ = false;
      return {};
    }
    const std::string_view bytes = in_.substr(at_, num_bytes);
    at_ += num_bytes;
    return bytes;
  }
  Digest Hash() {
    Digest digest{};
    const std::string_view bytes = Raw(digest.size());
    for (size_t i = 0; i < bytes.size(); ++i) {
      digest[i] = static_cast<uint8_t>(bytes[i]);
    }
    return digest;
  }
  std::string_view Bytes() { return Raw(Int<uint32_t>()); }
  // A u32 count of things that take at least `min_bytes` each.
  uint32_t Count(size_t min_bytes) {
    const auto count = Int<uint32_t>();
    if (count > remaining() / min_bytes) ok_ = false;
    return ok_ ? count : 0;
  }
  void Fail() { ok_ = false; }

  bool ok() const { return ok_; }
  size_t offset() const { return at_; }
  size_t remaining() const { return in_.size() - at_; }

 private:
  const std::string_view in_;
  size_t at_ = 0;
  bool ok_ = true;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_BASE_CODING_H_
