// What the files of this folder share to define codecs. Not for other rooms.
#ifndef XCACHE_ENGINE_XCACHE_CODEC_IMPL_H_
#define XCACHE_ENGINE_XCACHE_CODEC_IMPL_H_

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kernels/isa.h"
#include "engine/kernels/quantize_groups.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/profile_impl.h"

namespace xcache {

// What a codec is made from.
struct CodecSources {
  CodecShape shape;
  // Row `row` of W_k or W_v of a layer (the weights of one output feature) with
  // the norm's gain folded in, [d].
  std::function<void(int layer, Projection projection, int row, float* out)>
      weights;
  const Profile* profile = nullptr;  // of the registry's kind; else null
  EmbeddingFn embedding;             // outlives the codec
  float rms_norm_eps = 0.0f;
};

using MakeCodecFn = absl::StatusOr<std::unique_ptr<const Codec>> (*)(
    const CodecSpec& spec, const CodecSources& sources, Isa isa);

// One line of the registry.
struct CodecEntry {
  std::string_view name;
  ProfileKind profile_kind;
  MakeCodecFn make;
  // The most bytes of a layer's matrices.
  size_t (*layer_bytes)(size_t d_model, size_t kv_dim);
  int exact_window = kBlockTokens;  // where the spec names none
};

// nullptr for an unknown name.
const CodecEntry* FindCodec(std::string_view name);

absl::StatusOr<std::unique_ptr<const Codec>> MakeKvFp16(
    const CodecSpec& spec, const CodecSources& sources, Isa isa);
absl::StatusOr<std::unique_ptr<const Codec>> MakeXquant(
    const CodecSpec& spec, const CodecSources& sources, Isa isa);
absl::StatusOr<std::unique_ptr<const Codec>> MakeXquantGqa(
    const CodecSpec& spec, const CodecSources& sources, Isa isa);
absl::StatusOr<std::unique_ptr<const Codec>> MakeXquantCl(
    const CodecSpec& spec, const CodecSources& sources, Isa isa);
absl::StatusOr<std::unique_ptr<const Codec>> MakeXquantClGqa(
    const CodecSpec& spec, const CodecSources& sources, Isa isa);
absl::StatusOr<std::unique_ptr<const Codec>> MakeKivi(
    const CodecSpec& spec, const CodecSources& sources, Isa isa);
absl::StatusOr<std::unique_ptr<const Codec>> MakeXquantTc(
    const CodecSpec& spec, const CodecSources& sources, Isa isa);

// Reads a spec's options one by one; each that is read is known, and what is
// left over at the end is an error that lists the known ones.
//   OptionReader options(spec);
//   const std::string bits = options.Choice("bits", {"2", "3", "4", "8"}, "4");
//   XC_ASSIGN_OR_RETURN(CodecSpec canonical, options.Finish());
class OptionReader {
 public:
  explicit OptionReader(const CodecSpec& spec) : spec_(spec) {}

  // The option's value, or `fallback` where it is not given. The first value
  // that is not among `known` is what Finish reports.
  std::string Choice(std::string_view key,
                     const std::vector<std::string>& known,
                     std::string_view fallback);
  // The same where a whole number in [least, most] will do too.
  std::string ChoiceOrNumber(std::string_view key,
                             const std::vector<std::string>& known, int least,
                             int most, std::string_view fallback);
  // Choice of an option that only sets others' fallbacks: it does not appear
  // in the canonical spec.
  std::string Preset(std::string_view key,
                     const std::vector<std::string>& known,
                     std::string_view fallback);
  // Options that do not go together: what Finish reports, if nothing else is.
  void Refuse(std::string_view what);
  // The canonical spec: every option spelled out, sorted. INVALID_ARGUMENT: an
  // unknown option or value, or what was refused.
  absl::StatusOr<CodecSpec> Finish();

 private:
  std::string Read(std::string_view key, const std::vector<std::string>& known,
                   std::string_view fallback);

  const CodecSpec& spec_;
  std::vector<std::pair<std::string, std::string>> canonical_;
  std::vector<std::string> known_;  // "bits=2|3|4|8"
  std::vector<std::string> read_;
  absl::Status error_;
  absl::Status refused_;
};

// INVALID_ARGUMENT, naming the first bad row, unless those of `rows` that
// `live_rows` asks for, X or K and V before RoPE, are finite from `first_row`
// on.
absl::Status CheckRows(unsigned live_rows, const CodecShape& shape,
                       const LayerRows& rows, int first_row, int layer,
                       AllFiniteFn all_finite);
// The error of a row that cannot be sealed.
absl::Status NotFinite(std::string_view what, int layer, int row);
// INVALID_ARGUMENT: a payload of another size than planned.
absl::Status CheckPayloadSize(const PayloadPlan& plan, size_t found);

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_CODEC_IMPL_H_
