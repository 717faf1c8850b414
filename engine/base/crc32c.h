// CRC-32C (Castagnoli, RFC 3720 appendix B.4): the checksum of every record.
#ifndef XCACHE_ENGINE_BASE_CRC32C_H_
#define XCACHE_ENGINE_BASE_CRC32C_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace xcache {

// The CRC of `num_bytes` at `data`, continuing from `crc` (0 to start).
uint32_t Crc32c(const void* data, size_t num_bytes, uint32_t crc = 0);
inline uint32_t Crc32c(std::string_view bytes, uint32_t crc = 0) {
  return Crc32c(bytes.data(), bytes.size(), crc);
}

}  // namespace xcache

#endif  // XCACHE_ENGINE_BASE_CRC32C_H_
