// Loads codecs for an engine: parses the spec, makes or loads the profile once
// for each kind, makes the codec, and says what its pages are keyed by.
#ifndef XCACHE_ENGINE_COMMON_CODEC_LOADER_H_
#define XCACHE_ENGINE_COMMON_CODEC_LOADER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/mutex.h"
#include "engine/base/sha256.h"
#include "engine/kernels/isa.h"
#include "engine/model/model.h"
#include "engine/types.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/profile.h"

namespace xcache {

// What pages are of: equal for those alone whose bytes may stand for each
// other. `profile` may be null; `encoder_version`: Codec's.
Digest CacheFp(const Digest& model_fp, std::string_view spec,
               const Profile* profile, uint16_t page_version,
               int encoder_version);

// The page format that the codec's pages are of.
uint16_t PageVersion(const Codec& codec);

struct LoadedCodec {
  std::shared_ptr<const Profile> profile;  // null where it needs none
  std::unique_ptr<const Codec> codec;      // refers to *profile
  int exact_window = kBlockTokens;         // CodecHandle's
  std::string spec;                        // canonical
  Digest cache_fp{};
};

// Thread-safe. A profile that one thread makes is waited for by those that need
// it, and by no other.
class CodecLoader {
 public:
  // `embedding`: MakeCodec's.
  CodecLoader(std::shared_ptr<const Model> model, std::string profile_dir,
              Isa isa, EmbeddingFn embedding = nullptr);
  absl::StatusOr<LoadedCodec> Load(std::string_view spec,
                                   const ProgressFn& progress);
  // Makes or loads the profile that `spec` needs.
  absl::Status Prepare(std::string_view spec, const ProgressFn& progress);
  // The most bytes that it takes, MaxCodecBytes.
  absl::StatusOr<size_t> MaxBytes(std::string_view spec) const {
    return MaxCodecBytes(spec, *model_, profile_dir_);
  }

 private:
  // Null where `spec` needs none.
  absl::StatusOr<std::shared_ptr<const Profile>> ProfileFor(
      const CodecSpec& spec, const ProgressFn& progress);
  std::shared_ptr<const Profile> Known(ProfileKind kind) const;

  const std::shared_ptr<const Model> model_;
  const std::string profile_dir_;
  const Isa isa_;
  const EmbeddingFn embedding_;

  Mutex making_;  // held while a profile is made; before mu_
  mutable Mutex mu_;
  std::map<ProfileKind, std::shared_ptr<const Profile>> profiles_
      XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_COMMON_CODEC_LOADER_H_
