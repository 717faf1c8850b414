// The codecs there are, by name. A new codec adds its line to kCodecs.
#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status_macros.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/codec_impl.h"
#include "engine/xcache/transform/transform_data.h"

namespace xcache {
namespace {

// Outputs are padded to panels of packed matrices.
constexpr size_t kPanel = 64;
constexpr size_t Padded(size_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

size_t NoMatrices(size_t, size_t) { return 0; }
// W_k and W_v, FP16.
size_t TwoProjections(size_t d, size_t k) { return 2 * d * Padded(k) * 2; }
// To the latent and back, [k, k] each.
size_t TwoLatents(size_t, size_t k) { return 2 * k * Padded(k) * 4; }
// W_k, W_v, and a basis of 2 k columns and its transpose, FP16.
size_t ProjectionsAndBases(size_t d, size_t k) {
  const size_t rank = std::min(d, 2 * k);
  return TwoProjections(d, k) + (d * Padded(rank) + rank * Padded(d)) * 2;
}

// A layer's share of its group's transform, there and back, and a prediction;
// in the profile and packed.
size_t Transforms(size_t d, size_t k) {
  const size_t inputs =
      Padded(MostChannels(2 * k * kMostGroupLayers)) + kMostRank;
  return 2 * 2 * (2 * 2 * k * inputs + kMostRank * (d + 4 * k + 1));
}

constexpr std::array kCodecs = {
    CodecEntry{"kv-fp16", ProfileKind::kNone, &MakeKvFp16, &NoMatrices},
    CodecEntry{"xquant", ProfileKind::kNone, &MakeXquant, &TwoProjections},
    CodecEntry{"xquant-gqa", ProfileKind::kGqaSvd, &MakeXquantGqa, &TwoLatents},
    CodecEntry{"xquant-cl", ProfileKind::kNone, &MakeXquantCl, &TwoProjections},
    CodecEntry{"xquant-cl-gqa", ProfileKind::kClGqaSvd, &MakeXquantClGqa,
               &ProjectionsAndBases},
    CodecEntry{"xquant-tc", ProfileKind::kTransform, &MakeXquantTc, &Transforms,
               /*exact_window=*/128},
    CodecEntry{"kivi", ProfileKind::kNone, &MakeKivi, &NoMatrices},
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

std::vector<std::string> CodecNamesWithoutCalibration() {
  std::vector<std::string> names;
  for (const CodecEntry& entry : kCodecs) {
    if (entry.profile_kind != ProfileKind::kTransform) {
      names.emplace_back(entry.name);
    }
  }
  return names;
}

int DefaultWindow(const CodecSpec& spec) {
  const CodecEntry* entry = FindCodec(spec.name);
  return entry == nullptr ? kBlockTokens : entry->exact_window;
}

absl::StatusOr<ProfileKind> ProfileOf(const CodecSpec& spec) {
  const CodecEntry* entry = FindCodec(spec.name);
  if (entry == nullptr) return UnknownCodec(spec.name);
  return entry->profile_kind;
}

absl::StatusOr<size_t> MaxCodecBytes(std::string_view spec_text,
                                     const Model& model,
                                     const std::string& profile_dir) {
  XC_ASSIGN_OR_RETURN(const CodecSpec spec, CodecSpec::Parse(spec_text));
  const CodecEntry* entry = FindCodec(spec.name);
  if (entry == nullptr) return UnknownCodec(spec.name);
  const HyperParams& h = model.hparams();
  const auto d = static_cast<size_t>(h.d_model);
  const auto k = static_cast<size_t>(h.kv_dim());
  const ProfileShape profile{
      entry->profile_kind, static_cast<uint32_t>(h.num_layers),
      static_cast<uint32_t>(h.d_model), static_cast<uint32_t>(h.kv_dim())};
  if (entry->profile_kind == ProfileKind::kTransform) {
    const auto file =
        Profile::BytesOnDisk(profile_dir, model, entry->profile_kind);
    if (file.has_value()) {
      // The profile, and all of it packed, in panels: groups are hundreds of
      // channels. Layer 0's projections, and tables of 4 KB slots.
      constexpr size_t kTableBytes = size_t{4} << 20;
      return *file * 2 + *file / 4 + TwoProjections(d, k) + kTableBytes;
    }
  }
  // What coders keep of a channel: its width, place and sign.
  constexpr size_t kChannelBytes = 64;
  return static_cast<size_t>(h.num_layers) *
         (entry->layer_bytes(d, k) + FloatsPerLayer(profile) * sizeof(float) +
          (d + 2 * k) * kChannelBytes);
}

absl::StatusOr<std::unique_ptr<const Codec>> MakeCodec(
    const CodecSpec& spec, const Model& model, const Profile* profile, Isa isa,
    const EmbeddingFn& embedding) {
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
  sources.embedding = embedding;
  if (embedding == nullptr) {
    sources.embedding = [tensor = model.token_embd()](TokenId token,
                                                      float* out) {
      DequantizeRow(tensor, token, out);
    };
  }
  sources.rms_norm_eps = h.rms_norm_eps;
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
