// What the files that make, write and read profiles share. Not for other rooms.
#ifndef XCACHE_ENGINE_XCACHE_PROFILE_IMPL_H_
#define XCACHE_ENGINE_XCACHE_PROFILE_IMPL_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/xcache/profile.h"

namespace xcache {

struct ProfileShape {
  ProfileKind kind = ProfileKind::kNone;
  uint32_t num_layers = 0;
  uint32_t d_model = 0;
  uint32_t kv_dim = 0;
};

struct MatrixShape {
  std::string_view name;
  uint32_t rows = 0;
  uint32_t cols = 0;
};

// Each layer's matrices, in the order in which they are kept.
std::vector<MatrixShape> MatricesOf(const ProfileShape& shape);
size_t FloatsPerLayer(const ProfileShape& shape);

// Formats of profiles of weights alone, and of kTransform.
inline constexpr uint16_t kProfileVersion = 1;
inline constexpr uint16_t kTransformProfileVersion = 2;
// Header, `body`, checksum.
std::string SerializeProfile(uint16_t version, const ProfileShape& shape,
                             const Digest& model_fp, std::string_view body);

// `values`: every layer's matrices, one after another.
std::unique_ptr<const Profile> NewProfile(const ProfileShape& shape,
                                          const Digest& model_fp,
                                          std::vector<float> values);

enum class Projection { kKey, kValue };

// W_k or W_v of a layer with the norm's gain folded in, transposed: [k, d]
// row-major.
using ProjectionFn =
    std::function<void(int layer, Projection projection, float* out)>;

// The matrices of each kind, every layer's.
std::vector<float> MakeGqaSvd(const ProfileShape& shape,
                              const ProjectionFn& weights,
                              const ProgressFn& progress);
std::vector<float> MakeClGqaSvd(const ProfileShape& shape,
                                const ProjectionFn& weights,
                                const ProgressFn& progress);

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_PROFILE_IMPL_H_
