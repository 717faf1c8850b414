// The quantized matrices that a codec's payloads hold (PAGE_FORMAT.md), as the
// kernels read and write them, in the layout of the CPU's coder
// (engine/xcache/block_coder.h). Where in a payload a matrix is, and what its
// rows mean, is the codec's business.
#ifndef XCACHE_ENGINE_DEVICE_CODECS_MATRICES_H_
#define XCACHE_ENGINE_DEVICE_CODECS_MATRICES_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/device/codecs/codec.h"
#include "engine/device/memory.h"
#include "engine/device/ops.h"
#include "engine/xcache/tile_coder.h"

namespace xcache::cuda {

// A matrix's tiles cut into the units that kernels quantize, and the bytes of
// the encoded matrix.
struct TileUnits {
  std::vector<TileUnit> units;
  size_t bytes = 0;
};
TileUnits MakeTileUnits(std::span<const Tile> tiles, bool fp8);

// What all matrices of a codec share.
struct MatrixForm {
  int group = 0;
  bool fp8 = false;
  bool search = false;
};
// Takes `group`, `scales` and `clip`. Nullopt: a group that no kernel has.
std::optional<MatrixForm> TakeMatrixForm(SpecOptions& options);

// What decoding takes from a batch of either kind; the caller adds where to.
template <typename Batch>
DecodeArgs DecodeArgsOf(const Batch& batch) {
  DecodeArgs args;
  args.payloads = batch.payloads;
  args.invalid = batch.invalid;
  args.num_blocks = batch.num_blocks;
  return args;
}

// Rows of blocks to be encoded. All arrays are the device's.
struct EncodeArgs {
  const SealSource* sources = nullptr;  // [num_blocks], for the payloads
  const float* rows = nullptr;  // [num_blocks * 64, channels]; null: those of
  int64_t layer_offset = 0;     // the sources, from here on
  float* scratch = nullptr;     // [num_blocks, channels, 64] to work in, for
                                // matrices per token and for the sources' rows
  float* ranges = nullptr;      // [num_blocks, max_units(), 2] to work in
  int32_t* invalid = nullptr;   // [num_blocks]
  int num_blocks = 0;
};

// Matrices are numbered as they are added. Immutable after Upload.
class DeviceMatrices {
 public:
  DeviceMatrices(DeviceOps& ops, const MatrixForm& form)
      : form_(form), device_entries_(ops), device_units_(ops) {}

  // A matrix of `num_channels` channels, 1 to 8 bits, whose groups are channels
  // of a token; or of one whose groups are tokens of a channel, with widths
  // for each channel.
  size_t AddPerToken(int num_channels, int bits, bool rotated);
  size_t AddPerChannel(std::span<const int> widths);
  absl::Status Upload(DeviceOps& ops);

  // Bytes of an encoded block.
  size_t bytes(size_t matrix) const { return matrices_[matrix].bytes; }
  size_t max_units() const { return max_units_; }

  // A matrix that starts at `offset` of each payload, as kernels take it.
  TokenMatrix PerToken(size_t matrix, int64_t offset) const;
  ChannelMatrix PerChannel(size_t matrix, int64_t offset) const;

  // Enqueues the work for a matrix that starts at `offset` of each payload.
  void Decode(DeviceOps& ops, size_t matrix, int64_t offset,
              const DecodeArgs& args) const;
  // The CPU coder's bytes for the same rows.
  void Encode(DeviceOps& ops, size_t matrix, int64_t offset,
              const EncodeArgs& args) const;

 private:
  struct Matrix {
    bool per_token = false;
    bool rotated = false;
    int num_channels = 0;
    int bits = 0;  // per token
    size_t first_entry = 0;
    size_t first_unit = 0;
    int num_units = 0;
    size_t bytes = 0;
  };
  // Groups of tokens end with the block.
  int row_group() const;
  size_t Add(Matrix matrix, std::span<const Tile> tiles);

  const MatrixForm form_;
  std::vector<Matrix> matrices_;
  std::vector<ChannelEntry> entries_;
  std::vector<TileUnit> units_;
  size_t max_units_ = 0;
  DeviceMemory device_entries_, device_units_;
};

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_CODECS_MATRICES_H_
