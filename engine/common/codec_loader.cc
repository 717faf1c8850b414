#include "engine/common/codec_loader.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/xcache/page.h"

namespace xcache {

Digest CacheFp(const Digest& model_fp, std::string_view spec,
               const Profile* profile, uint16_t page_version,
               int encoder_version) {
  const auto bytes = [](const Digest& digest) {
    return std::string_view(reinterpret_cast<const char*>(digest.data()),
                            digest.size());
  };
  return Sha256()
      .Field(bytes(model_fp))
      .Field(spec)
      .Field(profile != nullptr ? bytes(profile->digest()) : "")
      .Field(encoder_version == 1
                 ? std::to_string(page_version)
                 : absl::StrCat(page_version, ".", encoder_version))
      .Finish();
}

uint16_t PageVersion(const Codec& codec) {
  return codec.variable_size() ? kVariablePageFormatVersion
                               : kPageFormatVersion;
}

namespace {

// Takes the option `window` out of a spec: it is the engine's, not the codec's.
absl::StatusOr<int> TakeWindow(CodecSpec* spec) {
  const auto option =
      std::find_if(spec->options.begin(), spec->options.end(),
                   [](const auto& at) { return at.first == "window"; });
  if (option == spec->options.end()) return DefaultWindow(*spec);
  for (const int window : {64, 128, 256, 512}) {
    if (option->second != std::to_string(window)) continue;
    spec->options.erase(option);
    return window;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("codec ", spec->name, ": window=", option->second,
                   ": expected 64, 128, 256 or 512"));
}

// Canonical. A window of one block goes without saying where that is the
// default, as it was before there were others.
std::string SpecWith(CodecSpec spec, int exact_window) {
  if (exact_window != kBlockTokens || DefaultWindow(spec) != kBlockTokens) {
    spec.options.emplace_back("window", std::to_string(exact_window));
    std::sort(spec.options.begin(), spec.options.end());
  }
  return spec.ToString();
}

}  // namespace

CodecLoader::CodecLoader(std::shared_ptr<const Model> model,
                         std::string profile_dir, Isa isa,
                         EmbeddingFn embedding)
    : model_(std::move(model)),
      profile_dir_(std::move(profile_dir)),
      isa_(isa),
      embedding_(std::move(embedding)) {}

std::shared_ptr<const Profile> CodecLoader::Known(ProfileKind kind) const {
  MutexLock lock(mu_);
  const auto it = profiles_.find(kind);
  return it == profiles_.end() ? nullptr : it->second;
}

absl::StatusOr<std::shared_ptr<const Profile>> CodecLoader::ProfileFor(
    const CodecSpec& spec, const ProgressFn& progress) {
  XC_ASSIGN_OR_RETURN(const ProfileKind kind, ProfileOf(spec));
  if (kind == ProfileKind::kNone) return nullptr;
  if (auto known = Known(kind)) return known;
  MutexLock making(making_);
  if (auto known = Known(kind)) return known;
  // A spec that the codec refuses must not cost a profile, but what is refused
  // shows only when the codec is made.
  XC_ASSIGN_OR_RETURN(
      std::shared_ptr<const Profile> made,
      Profile::LoadOrMake(profile_dir_, *model_, kind, progress));
  MutexLock lock(mu_);
  return profiles_[kind] = std::move(made);
}

absl::Status CodecLoader::Prepare(std::string_view spec_text,
                                  const ProgressFn& progress) {
  XC_ASSIGN_OR_RETURN(const CodecSpec spec, CodecSpec::Parse(spec_text));
  return ProfileFor(spec, progress).status();
}

absl::StatusOr<LoadedCodec> CodecLoader::Load(std::string_view spec_text,
                                              const ProgressFn& progress) {
  XC_ASSIGN_OR_RETURN(CodecSpec spec, CodecSpec::Parse(spec_text));
  LoadedCodec loaded;
  XC_ASSIGN_OR_RETURN(loaded.exact_window, TakeWindow(&spec));
  XC_ASSIGN_OR_RETURN(loaded.profile, ProfileFor(spec, progress));
  XC_ASSIGN_OR_RETURN(
      loaded.codec,
      MakeCodec(spec, *model_, loaded.profile.get(), isa_, embedding_));
  loaded.spec = SpecWith(loaded.codec->spec(), loaded.exact_window);
  loaded.cache_fp =
      CacheFp(model_->fingerprint(), loaded.spec, loaded.profile.get(),
              PageVersion(*loaded.codec), loaded.codec->encoder_version());
  return loaded;
}

}  // namespace xcache
