// Products of a block's rows with a codec's matrices. Not for other rooms.
#ifndef XCACHE_ENGINE_XCACHE_PROJECTION_H_
#define XCACHE_ENGINE_XCACHE_PROJECTION_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/base/status_macros.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/packed.h"
#include "engine/xcache/codec_impl.h"

namespace xcache {

// Rows [first, last) of out [64, b.n()] (+)= a [64, b.k()] b. An output row
// depends on its input row alone.
inline void ProjectRows(const Kernels& kernels, const float* a,
                        const PackedFloat& b, int first, int last, float* out,
                        Epilogue epilogue = Epilogue::kStore) {
  FloatMatmulArgs args;
  args.a = a + int64_t{first} * b.k();
  args.a_stride = b.k();
  args.num_rows = last - first;
  args.b = b.view();
  args.out = out + int64_t{first} * b.n();
  args.out_stride = b.n();
  args.epilogue = epilogue;
  kernels.float_matmul(args, 0, b.num_panels());
}

// W_k and W_v of a layer with the norm's gain folded in, [d, k] each. In FP16,
// which halves what is read of them; its 11 bits are finer than any weight that
// was quantized.
struct KvProjections {
  PackedFloat k, v;
};
inline absl::StatusOr<KvProjections> PackKvProjections(
    const CodecSources& sources, int layer) {
  const auto pack = [&](Projection projection) {
    return PackedFloat::FromWeightRows(
        sources.shape.kv_dim, sources.shape.d_model, FloatType::kF16,
        [&](int row, float* out) {
          sources.weights(layer, projection, row, out);
        });
  };
  KvProjections packed;
  XC_ASSIGN_OR_RETURN(packed.k, pack(Projection::kKey));
  XC_ASSIGN_OR_RETURN(packed.v, pack(Projection::kValue));
  return packed;
}

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_PROJECTION_H_
