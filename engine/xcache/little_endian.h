// Unaligned little-endian integers: what page and profile files are made of.
// The shifts compile to plain moves on little-endian machines.
#ifndef XCACHE_ENGINE_XCACHE_LITTLE_ENDIAN_H_
#define XCACHE_ENGINE_XCACHE_LITTLE_ENDIAN_H_

#include <cstdint>

namespace xcache {

inline void StoreLe16(void* to, uint16_t v) {
  auto* p = static_cast<uint8_t*>(to);
  p[0] = static_cast<uint8_t>(v);
  p[1] = static_cast<uint8_t>(v >> 8);
}
inline void StoreLe32(void* to, uint32_t v) {
  auto* p = static_cast<uint8_t*>(to);
  for (int i = 0; i < 4; ++i) p[i] = static_cast<uint8_t>(v >> (8 * i));
}
inline void StoreLe64(void* to, uint64_t v) {
  auto* p = static_cast<uint8_t*>(to);
  for (int i = 0; i < 8; ++i) p[i] = static_cast<uint8_t>(v >> (8 * i));
}
inline uint16_t LoadLe16(const void* from) {
  const auto* p = static_cast<const uint8_t*>(from);
  return static_cast<uint16_t>(p[0] | (p[1] << 8));
}
inline uint32_t LoadLe32(const void* from) {
  const auto* p = static_cast<const uint8_t*>(from);
  uint32_t v = 0;
  for (int i = 0; i < 4; ++i) v |= static_cast<uint32_t>(p[i]) << (8 * i);
  return v;
}
inline uint64_t LoadLe64(const void* from) {
  const auto* p = static_cast<const uint8_t*>(from);
  uint64_t v = 0;
  for (int i = 0; i < 8; ++i) v |= static_cast<uint64_t>(p[i]) << (8 * i);
  return v;
}

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_LITTLE_ENDIAN_H_
