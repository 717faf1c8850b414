// Profile bytes to a parsed profile: what is accepted serializes to itself.
#include "engine/base/crc32c.h"
#include "engine/xcache/little_endian.h"
#include "engine/xcache/profile_impl.h"
#include "engine/xcache/transform/transform_data.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/engine/xcache/transform_test_util.h"

using xcache::Profile;
using xcache::ProfileKind;

namespace {

constexpr ProfileKind kKinds[] = {ProfileKind::kGqaSvd, ProfileKind::kClGqaSvd,
                                  ProfileKind::kTransform};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto check = [](std::string_view bytes) {
    for (const ProfileKind kind : kKinds) {
      const auto profile = Profile::Parse(bytes, xcache::Digest{}, kind);
      if (!profile.ok()) {
        XCACHE_FUZZ_CHECK(absl::IsDataLoss(profile.status()) ||
                          absl::IsFailedPrecondition(profile.status()));
        continue;
      }
      XCACHE_FUZZ_CHECK((*profile)->Serialize() == bytes);
      if (kind == ProfileKind::kTransform) {
        XCACHE_FUZZ_CHECK((*profile)->transform() != nullptr);
        continue;
      }
      const bool keys = kind == ProfileKind::kGqaSvd;
      XCACHE_FUZZ_CHECK(
          !(*profile)->matrix(0, keys ? "k_basis" : "kv_basis").empty());
    }
  };
  std::string bytes(reinterpret_cast<const char*>(data), size);
  check(bytes);
  if (bytes.size() >= 4) {
    xcache::StoreLe32(&bytes[bytes.size() - 4],
                      xcache::Crc32c(bytes.data(), bytes.size() - 4));
    check(bytes);
  }
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  std::vector<std::string> seeds;
  for (const ProfileKind kind : kKinds) {
    if (kind == ProfileKind::kTransform) {
      seeds.push_back(
          xcache::NewTransformProfile(xcache::MakeUpTransform({3, 8, 2}, 1),
                                      xcache::Digest{})
              ->Serialize());
      continue;
    }
    const xcache::ProfileShape shape{kind, 2, 5, 3};
    std::vector<float> values(2 * xcache::FloatsPerLayer(shape), 0.5f);
    seeds.push_back(
        xcache::NewProfile(shape, xcache::Digest{}, values)->Serialize());
  }
  return seeds;
}
