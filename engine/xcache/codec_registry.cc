// The codecs there are, by name. A new codec adds its line to kCodecs.
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status_macros.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/codec_impl.h"

namespace xcache {
namespace {

constexpr std::array kCodecs = {
    CodecEntry{"kv-fp16", ProfileKind::kNone, &MakeKvFp16},
    CodecEntry{"xquant", ProfileKind::kNone, &MakeXquant},
    CodecEntry{"xquant-gqa", ProfileKind::kGqaSvd, &MakeXquantGqa},
    CodecEntry{"xquant-cl", ProfileKind::kNone, &MakeXquantCl},
    CodecEntry{"xquant-cl-gqa", ProfileKind::kClGqaSvd, &MakeXquantClGqa},
    CodecEntry{"kivi", ProfileKind::kNone, &MakeKivi},
};

absl::Status UnknownCodec(const std::string& name) {
  return absl::InvalidArgumentError(
      absl::StrCat("unknown codec '", name,
                   "'; known: ", absl::StrJoin(CodecNames(), ", ")));
}

}  // namespace

const CodecEntry* FindCodec(std::string_view name) {
  for (const CodecEntry& entry : kCodecs) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

std::vector<std::string> CodecNames() {
  std::vector<std::string> names;
  for (const CodecEntry& entry : kCodecs) names.emplace_back(entry.name);
  return names;
}

absl::StatusOr<ProfileKind> ProfileOf(const CodecSpec& spec) {
  const CodecEntry* entry = FindCodec(spec.name);
  if (entry == nullptr) return UnknownCodec(spec.name);
  return entry->profile_kind;
}

absl::StatusOr<std::unique_ptr<const Codec>> MakeCodec(const CodecSpec& spec,
                                                       const Model& model,
                                                       const Profile* profile,
                                                       Isa isa) {
  const CodecEntry* entry = FindCodec(spec.name);
  if (entry == nullptr) return UnknownCodec(spec.name);
  if (entry->profile_kind != ProfileKind::kNone &&
      (profile == nullptr || profile->kind() != entry->profile_kind)) {
    return absl::InternalError(
        absl::StrCat("codec ", spec.name, " needs a profile of kind ",
                     std::string(ProfileKindName(entry->profile_kind))));
  }
  const HyperParams& h = model.hparams();
  CodecSources sources;
  sources.shape = {h.num_layers, h.d_model, h.kv_dim()};
  sources.profile = profile;
  std::vector<float> gain(static_cast<size_t>(h.d_model));
  sources.weights = [&](int layer, Projection projection, int row, float* out) {
    const LayerTensors& tensors = model.layer(layer);
    DequantizeRow(tensors.attn_norm, 0, gain.data());
    DequantizeRow(projection == Projection::kKey ? tensors.wk : tensors.wv, row,
                  out);
    for (size_t i = 0; i < gain.size(); ++i) out[i] *= gain[i];
  };
  return entry->make(spec, sources, isa);
}

}  // namespace xcache
