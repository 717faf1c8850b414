#include "engine/base/sha256.h"

#include <openssl/evp.h>

#include <cstdlib>

namespace xcache {

struct Sha256::Context {
  Context() : ctx(EVP_MD_CTX_new()) {
    // Out of memory, or an OpenSSL without SHA-256: nothing can go on.
    if (ctx == nullptr || EVP_DigestInit_ex(ctx, EVP_sha256(), nullptr) != 1) {
      std::abort();
    }
  }
  ~Context() { EVP_MD_CTX_free(ctx); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  EVP_MD_CTX* ctx;
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {}
Sha256::~Sha256() = default;

Sha256& Sha256::Update(const void* data, size_t num_bytes) {
  if (num_bytes > 0) EVP_DigestUpdate(context_->ctx, data, num_bytes);
  return *this;
}

Sha256& Sha256::Field(std::string_view bytes) {
  uint8_t length[8];
  for (size_t i = 0; i < 8; ++i) {
    length[i] = static_cast<uint8_t>(uint64_t{bytes.size()} >> (8 * i));
  }
  return Update(length, sizeof(length)).Update(bytes);
}

Digest Sha256::Finish() {
  Digest digest;
  unsigned size = 0;
  EVP_DigestFinal_ex(context_->ctx, digest.data(), &size);
  return digest;
}

Digest Sha256Of(std::string_view bytes) {
  return Sha256().Update(bytes).Finish();
}

std::string ToHex(const Digest& digest) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(2 * digest.size());
  for (uint8_t byte : digest) {
    hex.push_back(kHex[byte >> 4]);
    hex.push_back(kHex[byte & 15]);
  }
  return hex;
}

}  // namespace xcache
