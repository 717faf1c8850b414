#include "engine/xcache/quant_options.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

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

BaseOptions ReadBaseOptions(OptionReader& options, const QuantOptions& quant,
                            int layers) {
  const std::string count = options.Choice("base_layers", {"1", "2", "3", "4"},
                                           std::to_string(layers));
  const std::string bits =
      options.Choice("base_bits", {"2", "3", "4", "8"},
                     std::to_string(std::max(quant.bits, 4)));
  BaseOptions base{layers, quant.bits};
  if (count.size() == 1 && count[0] >= '1' && count[0] <= '4') {
    base.layers = count[0] - '0';
  }
  if (bits.size() == 1 && bits[0] >= '1' && bits[0] <= '8') {
    base.bits = bits[0] - '0';
  }
  return base;
}

bool ReadSwitch(OptionReader& options, std::string_view key, bool fallback) {
  return options.Choice(key, {"off", "on"}, fallback ? "on" : "off") == "on";
}

absl::Status CheckRotation(const CodecSpec& spec, bool rotate, bool per_token) {
  if (!rotate || per_token) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("codec ", spec.name,
                   ": rotate=on: expected axis=token, found axis=channel"));
}

}  // namespace xcache
