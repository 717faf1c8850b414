// Scalar reference of pack_bits.h.
#include "engine/kernels/codec_kernels.h"

namespace xcache {
namespace {

void PackTile(const PackTileArgs& args) {
  uint8_t* out = args.packed;
  for (int bit = 0; bit < args.bits; ++bit) {
    for (int row = 0; row < args.num_values; row += 8) {
      for (int g = 0; g < args.num_groups; ++g) {
        unsigned byte = 0;
        for (int r = 0; r < 8 && row + r < args.num_values; ++r) {
          const unsigned code = args.codes[(row + r) * args.codes_stride + g];
          byte |= ((code >> bit) & 1u) << r;
        }
        *out++ = static_cast<uint8_t>(byte);
      }
    }
  }
}

void UnpackTile(const UnpackTileArgs& args) {
  const int plane_bytes = (args.num_values + 7) / 8 * args.num_groups;
  for (int row = 0; row < args.num_values; ++row) {
    for (int g = 0; g < args.num_groups; ++g) {
      unsigned code = 0;
      for (int bit = 0; bit < args.bits; ++bit) {
        const unsigned byte =
            args.packed[bit * plane_bytes + row / 8 * args.num_groups + g];
        code |= ((byte >> (row % 8)) & 1u) << bit;
      }
      args.x[row * args.x_stride + g] =
          args.bases[g] + args.steps[g] * static_cast<float>(code);
    }
  }
}

void Transpose(const float* in, int64_t in_stride, int num_rows, int num_cols,
               float* out, int64_t out_stride) {
  for (int r = 0; r < num_rows; ++r) {
    for (int c = 0; c < num_cols; ++c) {
      out[c * out_stride + r] = in[r * in_stride + c];
    }
  }
}

void ScaleRows(float* x, int64_t stride, int num_rows, int num_cols,
               const float* factors) {
  for (int r = 0; r < num_rows; ++r) {
    for (int c = 0; c < num_cols; ++c) x[r * stride + c] *= factors[r];
  }
}

void Hadamard(float* x, int64_t stride, int num_rows, int num_cols,
              const float* factors) {
  for (int half = 1; half < num_rows; half *= 2) {
    for (int r = 0; r < num_rows; ++r) {
      if ((r & half) != 0) continue;
      float* a = x + r * stride;
      float* b = x + (r + half) * stride;
      for (int c = 0; c < num_cols; ++c) {
        const float sum = a[c] + b[c];
        b[c] = a[c] - b[c];
        a[c] = sum;
      }
    }
  }
  if (factors != nullptr) ScaleRows(x, stride, num_rows, num_cols, factors);
}

}  // namespace

void AddPackBitsRef(CodecKernels* table) {
  table->pack_tile = PackTile;
  table->unpack_tile = UnpackTile;
  table->transpose = Transpose;
  table->hadamard = Hadamard;
  table->scale_rows = ScaleRows;
}

}  // namespace xcache
