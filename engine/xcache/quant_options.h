// The options that all quantizing codecs have in common. Not for other rooms.
#ifndef XCACHE_ENGINE_XCACHE_QUANT_OPTIONS_H_
#define XCACHE_ENGINE_XCACHE_QUANT_OPTIONS_H_

#include <span>
#include <string_view>

#include "engine/xcache/codec_impl.h"
#include "engine/xcache/payload_plan.h"

namespace xcache {

// Whether `preset` is "refined" (the default) and not "plain", the quantizer of
// the XQuant paper. It decides the fallbacks of all other options.
bool ReadPreset(OptionReader& options);
QuantOptions ReadQuantOptions(OptionReader& options, bool refined);

// Whether what is quantized per token is rotated first: `rotate`.
bool ReadRotation(OptionReader& options, bool fallback);
// Whether bits are spread along a latent's spectrum: `alloc`.
bool ReadSpread(OptionReader& options, bool fallback);

// Where a codec leaves the axis open.
struct AxisOptions {
  bool per_token = false;  // axis=token|channel
  bool rotated = false;    // rotate=on|off
};
// Refuses to rotate channels with scales of their own: these already fit
// outlier channels, which a rotation would spread.
AxisOptions ReadAxisOptions(OptionReader& options, bool refined,
                            std::string_view fallback);
// The matrix that the options describe. `bits` are those of every channel.
PayloadMatrix MatrixOf(const AxisOptions& axis, const QuantOptions& quant,
                       int num_channels, int bits);

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_QUANT_OPTIONS_H_
