// Rows of a block quantized per token: transposed, rotated where asked, in
// groups of channels. Thread-safe.
#ifndef XCACHE_ENGINE_XCACHE_TOKEN_CODER_H_
#define XCACHE_ENGINE_XCACHE_TOKEN_CODER_H_

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "engine/kernels/isa.h"
#include "engine/xcache/latent_coder.h"
#include "engine/xcache/quant_options.h"

namespace xcache {

class TokenCoder {
 public:
  TokenCoder(int num_channels, const QuantOptions& quant, bool rotate, Isa isa);

  // Bytes of an encoded block.
  size_t bytes() const { return coder_.bytes(); }
  // `rows` [64, num_channels], finite; those before `first_row` are not read.
  void Encode(const float* rows, int first_row, uint8_t* out) const;
  // Fills every row. INVALID_ARGUMENT: see LatentCoder::Decode.
  absl::Status Decode(const uint8_t* in, float* rows) const;

 private:
  int num_channels_;
  const CodecKernels* kernels_;
  LatentCoder coder_;
  std::optional<Rotation> rotation_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_TOKEN_CODER_H_
