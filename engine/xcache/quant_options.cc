#include "engine/xcache/quant_options.h"

#include <algorithm>
#include <string>
#include <vector>

namespace xcache {

bool ReadPreset(OptionReader& options) {
  return options.Preset("preset", {"plain", "refined"}, "refined") == "refined";
}

QuantOptions ReadQuantOptions(OptionReader& options, bool refined) {
  QuantOptions out;
  const std::string bits = options.Choice("bits", {"2", "3", "4", "8"}, "4");
  const std::string group =
      options.Choice("group", {"16", "32", "64", "128"}, "64");
  out.search = options.Choice("clip", {"minmax", "mse"},
                              refined ? "mse" : "minmax") == "mse";
  // FP8 saves a quarter bit a value and costs 1 to 3 % of the squared error at
  // 2 bits, 10 % at 4 (a quarter bit of codes is worth 40 %); at 8 bits it is
  // a centre's error that dominates, fourfold.
  out.scales = options.Choice("scales", {"fp16", "fp8"},
                              refined && bits != "8" ? "fp8" : "fp16") == "fp8"
                   ? ScaleFormat::kF8
                   : ScaleFormat::kF16;
  // Values that are not known are reported by Finish.
  if (bits.size() == 1 && bits[0] >= '1' && bits[0] <= '8') {
    out.bits = bits[0] - '0';
  }
  if (group == "16") out.group = 16;
  if (group == "32") out.group = 32;
  if (group == "128") out.group = 128;
  return out;
}

bool ReadRotation(OptionReader& options, bool fallback) {
  return options.Choice("rotate", {"off", "on"}, fallback ? "on" : "off") ==
         "on";
}

bool ReadSpread(OptionReader& options, bool fallback) {
  return options.Choice("alloc", {"spectrum", "uniform"},
                        fallback ? "spectrum" : "uniform") == "spectrum";
}

AxisOptions ReadAxisOptions(OptionReader& options, bool refined,
                            std::string_view fallback) {
  AxisOptions axis;
  axis.per_token =
      options.Choice("axis", {"channel", "token"}, fallback) == "token";
  axis.rotated = ReadRotation(options, refined && axis.per_token);
  if (axis.rotated && !axis.per_token) {
    options.Refuse("rotate=on: expected axis=token, found axis=channel");
  }
  return axis;
}

PayloadMatrix MatrixOf(const AxisOptions& axis, const QuantOptions& quant,
                       int num_channels, int bits) {
  if (axis.per_token) {
    return PerTokenMatrix(num_channels, quant, bits, axis.rotated);
  }
  return PerChannelMatrix(
      std::vector<int>(static_cast<size_t>(num_channels), bits), quant);
}

}  // namespace xcache
