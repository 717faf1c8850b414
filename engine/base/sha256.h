// SHA-256 (OpenSSL EVP): the digest of models, profiles and page keys.
#ifndef XCACHE_ENGINE_BASE_SHA256_H_
#define XCACHE_ENGINE_BASE_SHA256_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace xcache {

using Digest = std::array<uint8_t, 32>;

// Incremental SHA-256. Not thread-safe.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  Sha256& Update(const void* data, size_t num_bytes);
  Sha256& Update(std::string_view bytes) {
    return Update(bytes.data(), bytes.size());
  }
  // A length-prefixed field: ("ab","c") and ("a","bc") differ.
  Sha256& Field(std::string_view bytes);
  // The digest of everything so far. Call once.
  Digest Finish();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

Digest Sha256Of(std::string_view bytes);
// 64 lower-case hexadecimal digits.
std::string ToHex(const Digest& digest);

struct DigestHash {
  size_t operator()(const Digest& d) const {
    size_t h = 0;
    for (size_t i = 0; i < sizeof(h); ++i) h = (h << 8) | d[i];
    return h;
  }
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_BASE_SHA256_H_
