#include "engine/common/codec_loader.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/sha256.h"
#include "engine/kernels/kernels.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"

namespace xcache {
namespace {

using ::testing::HasSubstr;

TEST(CodecLoaderTest, AProfileIsMadeOnceForAllWhoWaitForIt) {
  CodecLoader loader(testing::MakeTinyModel({}), "", Isa::kRef);
  std::atomic<int> made{0};
  const ProgressFn progress = [&](std::string_view, double fraction) {
    if (fraction == 1.0) ++made;
  };
  std::vector<std::thread> threads;
  std::vector<absl::StatusOr<LoadedCodec>> loaded(4);
  for (size_t i = 0; i < loaded.size(); ++i) {
    threads.emplace_back([&, i] {
      const std::string spec =
          "xquant-cl-gqa:bits=" + std::to_string(i < 2 ? 2 : 4);
      if (i % 2 == 0) {
        EXPECT_TRUE(loader.Prepare(spec, progress).ok());
      }
      loaded[i] = loader.Load(spec, progress);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(made, 1);
  for (const auto& codec : loaded) {
    ASSERT_TRUE(codec.ok()) << codec.status();
    EXPECT_EQ(codec->profile, loaded[0]->profile);
  }
  EXPECT_EQ(loaded[0]->cache_fp, loaded[1]->cache_fp);
  EXPECT_NE(loaded[0]->cache_fp, loaded[2]->cache_fp);
}

// What is at hand is loaded while another profile is being made.
TEST(CodecLoaderTest, NobodyWaitsForAProfileThatHeDoesNotNeed) {
  CodecLoader loader(testing::MakeTinyModel({}), "", Isa::kRef);
  ASSERT_TRUE(loader.Prepare("xquant-gqa", {}).ok());
  bool loaded_meanwhile = false;
  const ProgressFn progress = [&](std::string_view, double) {
    loaded_meanwhile = loader.Load("xquant-gqa:bits=3", {}).ok() &&
                       loader.Load("kv-fp16", {}).ok();
  };
  ASSERT_TRUE(loader.Prepare("xquant-cl-gqa", progress).ok());
  EXPECT_TRUE(loaded_meanwhile);
}

// Pages of before are not read as those of an encoder that writes other bytes,
// and stay known where it never did.
TEST(CodecLoaderTest, PagesAreOfOneEncoder) {
  const Digest model = Sha256Of("a model");
  EXPECT_EQ(ToHex(CacheFp(model, "kv-fp16", nullptr, 1, 1)),
            "aaef5fadbfae7b98033342377d2cd6ce76df3d008db40b2e8f1f1711c75d4fc9");
  EXPECT_NE(CacheFp(model, "a", nullptr, 2, 1),
            CacheFp(model, "a", nullptr, 2, 2));
}

TEST(CodecLoaderTest, PrepareNamesWhatIsWrong) {
  CodecLoader loader(testing::MakeTinyModel({}), "", Isa::kRef);
  EXPECT_THAT(std::string(loader.Prepare("zip", {}).message()),
              HasSubstr("xquant-gqa"));
  EXPECT_FALSE(loader.Prepare("xquant-gqa:bits", {}).ok());
  EXPECT_TRUE(loader.Prepare("kv-fp16", {}).ok());
}

}  // namespace
}  // namespace xcache
