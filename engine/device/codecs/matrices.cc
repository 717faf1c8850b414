#include "engine/device/codecs/matrices.h"

#include <algorithm>

#include "engine/base/status_macros.h"
#include "engine/device/kernels/thread_block.h"
#include "engine/types.h"

namespace xcache::cuda {

TileUnits MakeTileUnits(std::span<const Tile> tiles, bool fp8) {
  TileUnits out;
  const ScaleFormat format = fp8 ? ScaleFormat::kF8 : ScaleFormat::kF16;
  out.bytes = MultiplierBytes(format);
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
    out.bytes += EncodedTileBytes(t, format);
  }
  return out;
}

DeviceMatrices::DeviceMatrices(DeviceOps& ops, const PayloadPlan& plan)
    : plan_(plan), device_entries_(ops), device_units_(ops) {
  for (const PayloadMatrix& matrix : plan_.matrices()) {
    const TileUnits units =
        MakeTileUnits(matrix.tiles, plan_.quant().scales == ScaleFormat::kF8);
    const Tables tables{entries_.size(), units_.size(),
                        static_cast<int>(units.units.size())};
    units_.insert(units_.end(), units.units.begin(), units.units.end());
    max_units_ = std::max(max_units_, units.units.size());
    if (matrix.axis == GroupAxis::kChannel) AddEntries(matrix, tables);
    tables_.push_back(tables);
  }
}

int DeviceMatrices::row_group() const {
  return std::min(plan_.quant().group, kBlockTokens);
}

// Where each channel's codes are, for each group of tokens.
void DeviceMatrices::AddEntries(const PayloadMatrix& matrix,
                                const Tables& tables) {
  const auto channels = static_cast<size_t>(matrix.num_channels);
  const auto row_groups = static_cast<size_t>(kBlockTokens / row_group());
  entries_.resize(entries_.size() + row_groups * channels);
  for (size_t u = 0; u < static_cast<size_t>(tables.num_units); ++u) {
    const TileUnit& unit = units_[tables.first_unit + u];
    ChannelEntry* row =
        entries_.data() + tables.first_entry +
        static_cast<size_t>(unit.first_row / row_group()) * channels;
    for (int c = 0; c < unit.num_cols; ++c) {
      row[unit.first_col + c] = {unit.tile_offset, unit.tile_cols, unit.col + c,
                                 unit.bits};
    }
  }
}

absl::Status DeviceMatrices::Upload(DeviceOps& ops) {
  if (!entries_.empty()) {
    XC_RETURN_IF_ERROR(UploadArray(ops, std::span<const ChannelEntry>(entries_),
                                   device_entries_));
  }
  return UploadArray(ops, std::span<const TileUnit>(units_), device_units_);
}

TokenMatrix DeviceMatrices::PerToken(int layer, size_t part) const {
  const PayloadMatrix& m = At(layer, part);
  TokenMatrix tokens;
  tokens.offset = static_cast<int64_t>(plan_.part(layer, part).at);
  tokens.num_channels = m.num_channels;
  tokens.group = plan_.quant().group;
  tokens.bits = m.tiles.front().bits;
  tokens.fp8 = plan_.quant().scales == ScaleFormat::kF8;
  tokens.rotated = m.rotated;
  return tokens;
}

ChannelMatrix DeviceMatrices::PerChannel(int layer, size_t part) const {
  const PayloadPlan::Part& at = plan_.part(layer, part);
  ChannelMatrix channels;
  channels.offset = static_cast<int64_t>(at.at);
  channels.num_channels = At(layer, part).num_channels;
  channels.group = row_group();
  channels.entries =
      device_entries_.as<ChannelEntry>() + tables_[at.matrix].first_entry;
  channels.fp8 = plan_.quant().scales == ScaleFormat::kF8;
  return channels;
}

void DeviceMatrices::Decode(DeviceOps& ops, int layer, size_t part,
                            const DecodeArgs& args) const {
  if (At(layer, part).axis == GroupAxis::kToken) {
    ops.DecodeTokens(PerToken(layer, part), args);
  } else {
    ops.DecodeChannels(PerChannel(layer, part), args);
  }
}

void DeviceMatrices::Encode(DeviceOps& ops, int layer, size_t part,
                            const EncodeArgs& args) const {
  const PayloadMatrix& m = At(layer, part);
  const PayloadPlan::Part& at = plan_.part(layer, part);
  QuantizeArgs quantize;
  quantize.sources = args.sources;
  quantize.units = device_units_.as<TileUnit>() + tables_[at.matrix].first_unit;
  quantize.payload_offset = static_cast<int64_t>(at.at);
  quantize.x = args.rows;
  quantize.x_block = int64_t{m.num_channels} * kBlockTokens;
  quantize.x_stride = m.num_channels;
  quantize.ranges = args.ranges;
  quantize.num_blocks = args.num_blocks;
  quantize.num_units = tables_[at.matrix].num_units;
  quantize.rows_are_tokens = true;
  quantize.fp8 = plan_.quant().scales == ScaleFormat::kF8;
  quantize.search = plan_.quant().search;
  if (m.axis == GroupAxis::kToken) {
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
