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
// An option that is on or off.
bool ReadSwitch(OptionReader& options, std::string_view key, bool fallback);

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_QUANT_OPTIONS_H_
