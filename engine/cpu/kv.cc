#include "engine/cpu/kv.h"

#include <cstring>
#include <new>

#include "engine/xcache/codec.h"

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

namespace {

size_t Elements(const KvShape& shape, int width) {
  return static_cast<size_t>(shape.num_layers) * kBlockTokens *
         static_cast<size_t>(width);
}

AlignedBuffer<float> RowsIf(bool asked, const KvShape& shape, int width) {
  return asked ? AlignedBuffer<float>(Elements(shape, width))
               : AlignedBuffer<float>();
}

}  // namespace

LiveBlockRows::LiveBlockRows(const KvShape& shape, unsigned live_rows)
    : shape_(shape),
      unit_x_(RowsIf(live_rows & kLiveUnitX, shape, shape.d_model)),
      rms_(RowsIf(live_rows & kLiveRms, shape, 1)),
      k_pre_(RowsIf(live_rows & kLiveKvPre, shape, shape.kv_dim())),
      v_pre_(RowsIf(live_rows & kLiveKvPre, shape, shape.kv_dim())) {}

size_t LiveBlockRows::Bytes(const KvShape& shape, unsigned live_rows) {
  size_t elements = 0;
  if (live_rows & kLiveUnitX) elements += Elements(shape, shape.d_model);
  if (live_rows & kLiveRms) elements += Elements(shape, 1);
  if (live_rows & kLiveKvPre) elements += 2 * Elements(shape, shape.kv_dim());
  return elements * sizeof(float);
}

}  // namespace xcache
