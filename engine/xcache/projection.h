// Products of a block's rows with a codec's matrices. Not for other rooms.
#ifndef XCACHE_ENGINE_XCACHE_PROJECTION_H_
#define XCACHE_ENGINE_XCACHE_PROJECTION_H_

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/packed.h"
#include "engine/types.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/codec_impl.h"

namespace xcache {

// Rows [first_row, 64) of out [64, b.n()] (+)= a [64, b.k()] B. An output row
// depends on its input row alone.
struct RowProduct {
  const float* a = nullptr;
  const PackedFloat* b = nullptr;
  float* out = nullptr;
  Epilogue epilogue = Epilogue::kStore;
};

// Several at once: none may read what another writes. Spread over panels of
// columns by `parallel`, where it is not null.
inline void ProjectRows(const Kernels& kernels,
                        std::span<const RowProduct> products, int first_row,
                        const ParallelForFn& parallel) {
  const auto multiply = [&](const RowProduct& p, int first, int last) {
    FloatMatmulArgs args;
    args.a = p.a + int64_t{first_row} * p.b->k();
    args.a_stride = p.b->k();
    args.num_rows = kBlockTokens - first_row;
    args.b = p.b->view();
    args.out = p.out + int64_t{first_row} * p.b->n();
    args.out_stride = p.b->n();
    args.epilogue = p.epilogue;
    kernels.float_matmul(args, first, last);
  };
  if (!parallel) {
    for (const RowProduct& p : products) multiply(p, 0, p.b->num_panels());
    return;
  }
  int64_t panels = 0;
  for (const RowProduct& p : products) panels += p.b->num_panels();
  parallel(panels, [&](int64_t panel) {
    for (const RowProduct& p : products) {
      if (panel < p.b->num_panels()) {
        const int at = static_cast<int>(panel);
        return multiply(p, at, at + 1);
      }
      panel -= p.b->num_panels();
    }
  });
}

// One product.
inline void ProjectRows(const Kernels& kernels, const RowProduct& product,
                        int first_row, const ParallelForFn& parallel) {
  ProjectRows(kernels, std::span(&product, 1), first_row, parallel);
}

// One product, on the calling thread.
inline void ProjectRows(const Kernels& kernels, const float* a,
                        const PackedFloat& b, int first_row, float* out) {
  ProjectRows(kernels, RowProduct{a, &b, out}, first_row, nullptr);
}

// W_k or W_v of a layer with the norm's gain folded in, [d, k]. In FP16, which
// halves what is read of it; its 11 bits are finer than any weight that was
// quantized.
inline absl::StatusOr<PackedFloat> PackProjection(const CodecSources& sources,
                                                  int layer,
                                                  Projection projection) {
  return PackedFloat::FromWeightRows(
      sources.shape.kv_dim, sources.shape.d_model, FloatType::kF16,
      [&](int row, float* out) {
        sources.weights(layer, projection, row, out);
      });
}

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_PROJECTION_H_
