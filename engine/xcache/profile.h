// What a codec needs that is computed once for each model, offline: SVD bases
// with fixed signs and the matrices fused from them. A file next to the store,
// byte-identical when made again on any machine with the same binary.
#ifndef XCACHE_ENGINE_XCACHE_PROFILE_H_
#define XCACHE_ENGINE_XCACHE_PROFILE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/sha256.h"
#include "engine/model/model.h"
#include "engine/types.h"

namespace xcache {

struct TransformData;

enum class ProfileKind : uint32_t {
  kNone = 0,       // computed from the model alone, fast enough to keep no file
  kGqaSvd = 2,     // SVD of W_k, with the norm's gain folded in
  kClGqaSvd = 3,   // SVD of [W_k | W_v], with the norm's gain folded in
  kTransform = 4,  // of calibration text: engine/calibration
};
std::string_view ProfileKindName(ProfileKind kind);

class Profile {
 public:
  // Computes the profile. Single-threaded FP64 SVD (Eigen); deterministic.
  // FAILED_PRECONDITION: kTransform, which is computed from text and not from
  // weights alone (xcache-calibrate).
  static absl::StatusOr<std::unique_ptr<const Profile>> Make(
      const Model& model, ProfileKind kind, const ProgressFn& progress);
  // Loads `dir`/<file name of model and kind>, or makes it and writes it there
  // (to a temporary name, synced, then renamed). A file that is corrupt or of
  // another model is made anew, with a line in the log. Empty `dir`: only made.
  // One of kTransform is only loaded: where it cannot be, that is the error.
  static absl::StatusOr<std::unique_ptr<const Profile>> LoadOrMake(
      const std::string& dir, const Model& model, ProfileKind kind,
      const ProgressFn& progress);
  // The size of the file that LoadOrMake would load, if there is one.
  static std::optional<size_t> BytesOnDisk(const std::string& dir,
                                           const Model& model,
                                           ProfileKind kind);
  // Parses a profile's bytes. DATA_LOSS: corrupt; FAILED_PRECONDITION: of
  // another model, kind or format version.
  static absl::StatusOr<std::unique_ptr<const Profile>> Parse(
      std::string_view bytes, const Digest& model_fp, ProfileKind kind);
  // Writes it into `dir` under the name that LoadOrMake looks for.
  static absl::Status Save(const Profile& profile, const std::string& dir,
                           const Digest& model_fp);

  virtual ~Profile() = default;
  virtual ProfileKind kind() const = 0;
  virtual const Digest& digest() const = 0;
  // The named matrix of a layer, FP32 row-major; its shape is checked against
  // the model when the profile is parsed. Names are listed in
  // PROFILE_FORMAT.md.
  virtual std::span<const float> matrix(int layer,
                                        std::string_view name) const = 0;
  // What a profile of kind kTransform holds, which has no matrices; else null.
  virtual const TransformData* transform() const { return nullptr; }
  virtual std::string Serialize() const = 0;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_PROFILE_H_
