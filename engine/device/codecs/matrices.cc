#include "engine/device/codecs/matrices.h"

#include <algorithm>

#include "engine/base/status_macros.h"
#include "engine/device/kernels/quantize.h"
#include "engine/kernels/pack_bits.h"
#include "engine/types.h"

namespace xcache::cuda {

TileUnits MakeTileUnits(std::span<const Tile> tiles, bool fp8) {
  TileUnits out;
  out.bytes = fp8 ? 4 : 0;  // the multipliers
  for (const Tile& t : tiles) {
    for (int col = 0; col < t.num_cols; col += kThreads) {
      TileUnit unit;
      unit.first_row = t.first_row;
      unit.num_rows = t.num_rows;
      unit.first_col = t.first_col + col;
      unit.num_cols = std::min(kThreads, t.num_cols - col);
      unit.col = col;
      unit.tile_cols = t.num_cols;
      unit.tile_offset = static_cast<int32_t>(out.bytes);
      unit.bits = t.bits;
      out.units.push_back(unit);
    }
    out.bytes += size_t{2} * (fp8 ? 1 : 2) * static_cast<size_t>(t.num_cols) +
                 PackedTileBytes(t.num_rows, t.num_cols, t.bits);
  }
  return out;
}

std::optional<MatrixForm> TakeMatrixForm(SpecOptions& options) {
  MatrixForm form;
  form.group = options.TakeInt("group").value_or(0);
  form.fp8 = options.Take("scales") == "fp8";
  form.search = options.Take("clip") == "mse";
  if (form.group < 8 || form.group % 8 != 0 || form.group > kMaxTileRows) {
    return std::nullopt;
  }
  return form;
}

int DeviceMatrices::row_group() const {
  return std::min(form_.group, kBlockTokens);
}

size_t DeviceMatrices::Add(Matrix matrix, std::span<const Tile> tiles) {
  const TileUnits units = MakeTileUnits(tiles, form_.fp8);
  matrix.first_unit = units_.size();
  matrix.num_units = static_cast<int>(units.units.size());
  matrix.bytes = units.bytes;
  units_.insert(units_.end(), units.units.begin(), units.units.end());
  max_units_ = std::max(max_units_, units.units.size());
  matrices_.push_back(matrix);
  return matrices_.size() - 1;
}

size_t DeviceMatrices::AddPerToken(int num_channels, int bits, bool rotated) {
  Matrix matrix;
  matrix.per_token = true;
  matrix.rotated = rotated;
  matrix.num_channels = num_channels;
  matrix.bits = bits;
  return Add(matrix,
             PerTokenTiles(num_channels, kBlockTokens, form_.group, bits));
}

size_t DeviceMatrices::AddPerChannel(std::span<const int> widths) {
  Matrix matrix;
  matrix.num_channels = static_cast<int>(widths.size());
  matrix.first_entry = entries_.size();
  const size_t number =
      Add(matrix, PerChannelTiles(widths, kBlockTokens, form_.group));
  // Where each channel's codes are, for each group of tokens.
  const auto row_groups = static_cast<size_t>(kBlockTokens / row_group());
  entries_.resize(entries_.size() + row_groups * widths.size());
  const Matrix& added = matrices_[number];
  for (size_t u = 0; u < static_cast<size_t>(added.num_units); ++u) {
    const TileUnit& unit = units_[added.first_unit + u];
    ChannelEntry* row =
        entries_.data() + added.first_entry +
        static_cast<size_t>(unit.first_row / row_group()) * widths.size();
    for (int c = 0; c < unit.num_cols; ++c) {
      row[unit.first_col + c] = {unit.tile_offset, unit.tile_cols, unit.col + c,
                                 unit.bits};
    }
  }
  return number;
}

absl::Status DeviceMatrices::Upload(DeviceOps& ops) {
  if (!entries_.empty()) {
    XC_RETURN_IF_ERROR(UploadArray(ops, std::span<const ChannelEntry>(entries_),
                                   device_entries_));
  }
  return UploadArray(ops, std::span<const TileUnit>(units_), device_units_);
}

TokenMatrix DeviceMatrices::PerToken(size_t matrix, int64_t offset) const {
  const Matrix& m = matrices_[matrix];
  TokenMatrix tokens;
  tokens.offset = offset;
  tokens.num_channels = m.num_channels;
  tokens.group = form_.group;
  tokens.bits = m.bits;
  tokens.fp8 = form_.fp8;
  tokens.rotated = m.rotated;
  return tokens;
}

ChannelMatrix DeviceMatrices::PerChannel(size_t matrix, int64_t offset) const {
  const Matrix& m = matrices_[matrix];
  ChannelMatrix channels;
  channels.offset = offset;
  channels.num_channels = m.num_channels;
  channels.group = row_group();
  channels.entries = device_entries_.as<ChannelEntry>() + m.first_entry;
  channels.fp8 = form_.fp8;
  return channels;
}

void DeviceMatrices::Decode(DeviceOps& ops, size_t matrix, int64_t offset,
                            const DecodeArgs& args) const {
  if (matrices_[matrix].per_token) {
    ops.DecodeTokens(PerToken(matrix, offset), args);
  } else {
    ops.DecodeChannels(PerChannel(matrix, offset), args);
  }
}

void DeviceMatrices::Encode(DeviceOps& ops, size_t matrix, int64_t offset,
                            const EncodeArgs& args) const {
  const Matrix& m = matrices_[matrix];
  QuantizeArgs quantize;
  quantize.sources = args.sources;
  quantize.units = device_units_.as<TileUnit>() + m.first_unit;
  quantize.payload_offset = offset;
  quantize.x = args.rows;
  quantize.x_block = int64_t{m.num_channels} * kBlockTokens;
  quantize.x_stride = m.num_channels;
  quantize.ranges = args.ranges;
  quantize.num_blocks = args.num_blocks;
  quantize.num_units = m.num_units;
  quantize.rows_are_tokens = true;
  quantize.fp8 = form_.fp8;
  quantize.search = form_.search;
  if (m.per_token) {
    TransposeArgs transpose;
    transpose.sources = args.sources;
    transpose.layer_offset = args.layer_offset;
    transpose.x = args.rows;
    transpose.out = args.scratch;
    transpose.invalid = args.invalid;
    transpose.num_blocks = args.num_blocks;
    transpose.num_channels = m.num_channels;
    transpose.rotate = m.rotated;
    ops.Transpose(transpose);
    quantize.x = args.scratch;
    quantize.x_stride = kBlockTokens;
    quantize.rows_are_tokens = false;
  } else if (args.rows == nullptr) {
    GatherArgs gather;
    gather.sources = args.sources;
    gather.layer_offset = args.layer_offset;
    gather.out = args.scratch;
    gather.invalid = args.invalid;
    gather.num_blocks = args.num_blocks;
    gather.width = m.num_channels;
    ops.Gather(gather);
    quantize.x = args.scratch;
  }
  ops.Quantize(quantize);
}

}  // namespace xcache::cuda
