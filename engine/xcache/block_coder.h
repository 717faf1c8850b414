// The rows of a block, [64, channels], as a payload's matrix: quantized with
// scales per token or per channel. Thread-safe.
#ifndef XCACHE_ENGINE_XCACHE_BLOCK_CODER_H_
#define XCACHE_ENGINE_XCACHE_BLOCK_CODER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "engine/kernels/isa.h"
#include "engine/xcache/payload_plan.h"
#include "engine/xcache/tile_coder.h"

namespace xcache {

class BlockCoder {
 public:
  // REQUIRES: a matrix that has groups.
  BlockCoder(const PayloadMatrix& matrix, const QuantOptions& quant, Isa isa);

  // Bytes of an encoded block.
  size_t bytes() const { return matrix_.bytes; }
  // `rows` [64, num_channels], finite; those before `first_row` are not read.
  void Encode(const float* rows, int first_row, uint8_t* out) const;
  // Fills every row. INVALID_ARGUMENT: see TileCoder::Decode.
  absl::Status Decode(const uint8_t* in, float* rows) const;

 private:
  PayloadMatrix matrix_;
  const CodecKernels* kernels_;
  TileCoder coder_;
  std::optional<Rotation> rotation_;
};

// The coders of plan.matrices().
std::vector<BlockCoder> CodersOf(const PayloadPlan& plan, Isa isa);

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_BLOCK_CODER_H_
