// Where the CPU engine keeps the rows of a block: the FP16 tiles that attention
// reads, and the live rows that a codec needs when the block seals. Memory and
// layout only; nothing is computed here.
#ifndef XCACHE_ENGINE_CPU_KV_H_
#define XCACHE_ENGINE_CPU_KV_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "engine/common/kv_shape.h"
#include "engine/common/live_rows.h"
#include "engine/cpu/kv_arena.h"
#include "engine/engine.h"
#include "engine/types.h"

namespace xcache {

namespace internal {
void* AllocateZeroed(size_t num_bytes);
void FreeAligned(void* p);
}  // namespace internal

// Zero-filled memory, aligned for vector loads, freed with its owner.
template <typename T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t n)
      : data_(static_cast<T*>(internal::AllocateZeroed(n * sizeof(T)))),
        size_(n) {}
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(void* p) const { internal::FreeAligned(p); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

// Makes room for `size` elements; what was there may be gone then.
template <typename T>
void Grow(AlignedBuffer<T>& buffer, int64_t size) {
  if (static_cast<int64_t>(buffer.size()) < size) {
    buffer = AlignedBuffer<T>(static_cast<size_t>(size));
  }
}

// The tiles of all layers, or of those alone that see all keys, and of all KV
// heads: K transposed, [head_dim][64], and V, [64][head_dim], next to each
// other, FP16. Layers that see all keys come first, so that a layer's tiles are
// at the same place in either. Written by the sequence whose live block it is,
// immutable once it is sealed.
class CpuKvBlock final : public KvBlock {
 public:
  // `arena` has blocks of shape.tile_bytes(), or of those of full_layers().
  // What is in the tiles at first is unspecified.
  CpuKvBlock(const KvShape& shape, std::shared_ptr<KvArena> arena,
             bool whole = true)
      : shape_(shape),
        whole_(whole),
        arena_(std::move(arena)),
        tiles_(static_cast<uint16_t*>(arena_->Allocate())) {}
  ~CpuKvBlock() override { arena_->Free(tiles_); }
  CpuKvBlock(const CpuKvBlock&) = delete;
  CpuKvBlock& operator=(const CpuKvBlock&) = delete;

  size_t bytes() const override { return arena_->block_bytes(); }
  bool whole() const override { return whole_; }
  const KvShape& shape() const { return shape_; }

  // Of a layer that it has not: not to be read or written.
  uint16_t* k_tile(int layer, int head) { return tiles_ + Offset(layer, head); }
  uint16_t* v_tile(int layer, int head) {
    return k_tile(layer, head) + shape_.tile_elements();
  }
  const uint16_t* k_tile(int layer, int head) const {
    return tiles_ + Offset(layer, head);
  }
  const uint16_t* v_tile(int layer, int head) const {
    return k_tile(layer, head) + shape_.tile_elements();
  }

 private:
  size_t Offset(int layer, int head) const {
    return static_cast<size_t>(shape_.slot(layer)) * shape_.layer_elements() +
           static_cast<size_t>(head) * 2 * shape_.tile_elements();
  }

  const KvShape shape_;
  const bool whole_;
  const std::shared_ptr<KvArena> arena_;
  uint16_t* const tiles_;
};

// The exact rows of a live block.
class LiveBlockRows {
 public:
  explicit LiveBlockRows(const LiveRowsLayout& layout)
      : layout_(layout), rows_(layout.floats()) {}

  // Rows of a layer, null where the codec does not ask.
  float* unit_x(int layer) { return layout_.unit_x(rows_.data(), layer); }
  float* rms(int layer) { return layout_.rms(rows_.data(), layer); }
  float* k_pre(int layer) { return layout_.k_pre(rows_.data(), layer); }
  float* v_pre(int layer) { return layout_.v_pre(rows_.data(), layer); }

 private:
  const LiveRowsLayout& layout_;
  AlignedBuffer<float> rows_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_CPU_KV_H_
