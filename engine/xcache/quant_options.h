// The options that all quantizing codecs have in common. Not for other rooms.
#ifndef XCACHE_ENGINE_XCACHE_QUANT_OPTIONS_H_
#define XCACHE_ENGINE_XCACHE_QUANT_OPTIONS_H_

#include "engine/kernels/quantize_groups.h"
#include "engine/xcache/codec_impl.h"

namespace xcache {

struct QuantOptions {
  int bits = 4;                           // bits=2|3|4|8
  int group = 64;                         // group=16|32|64|128, values
  bool search = true;                     // clip=mse|minmax
  ScaleFormat scales = ScaleFormat::kF8;  // scales=fp8|fp16
};

// Whether `preset` is "refined" (the default) and not "plain", the quantizer of
// the XQuant paper. It decides the fallbacks of all other options.
bool ReadPreset(OptionReader& options);
QuantOptions ReadQuantOptions(OptionReader& options, bool refined);

// The base of a cross-layer codec: layers that hold rows, not differences.
struct BaseOptions {
  int layers = 0;  // base_layers=1|2|3|4
  int bits = 0;    // base_bits=2|3|4|8
};
// At least 4 bits unless asked otherwise.
BaseOptions ReadBaseOptions(OptionReader& options, const QuantOptions& quant,
                            int layers);
// An option that is on or off.
bool ReadSwitch(OptionReader& options, std::string_view key, bool fallback);
// INVALID_ARGUMENT where channels with scales of their own would be rotated:
// these already fit outlier channels, which a rotation would spread.
absl::Status CheckRotation(const CodecSpec& spec, bool rotate, bool per_token);

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_QUANT_OPTIONS_H_
