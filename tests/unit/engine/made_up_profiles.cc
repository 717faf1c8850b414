#include "tests/unit/engine/made_up_profiles.h"

#include <unistd.h>

#include <filesystem>

#include "engine/xcache/profile.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/xcache/transform_test_util.h"

namespace xcache::testing {
namespace {

// Of this process: tests run beside each other.
struct Folder {
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  const std::string path =
      ::testing::TempDir() + "made-up-profiles-" + std::to_string(getpid());
};

}  // namespace

std::string MadeUpProfiles(const Model& model) {
  static const Folder folder;
  const HyperParams& h = model.hparams();
  const absl::Status saved =
      Profile::Save(*NewTransformProfile(
                        MakeUpTransform({h.num_layers, h.d_model, h.kv_dim()},
                                        /*group_layers=*/2),
                        model.fingerprint()),
                    folder.path, model.fingerprint());
  EXPECT_TRUE(saved.ok()) << saved;
  return folder.path;
}

}  // namespace xcache::testing
