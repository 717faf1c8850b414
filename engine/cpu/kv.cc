#include "engine/cpu/kv.h"

#include <cstring>
#include <new>

namespace xcache {
namespace internal {

// A cache line, and the widest vector.
constexpr std::align_val_t kAlign{64};

void* AllocateZeroed(size_t num_bytes) {
  if (num_bytes == 0) return nullptr;
  void* p = ::operator new(num_bytes, kAlign);
  std::memset(p, 0, num_bytes);
  return p;
}

void FreeAligned(void* p) { ::operator delete(p, kAlign); }

}  // namespace internal

}  // namespace xcache
