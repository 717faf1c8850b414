#include "engine/common/codec_loader.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/kernels/kernels.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"

namespace xcache {
namespace {

using ::testing::HasSubstr;

TEST(CodecOpenerTest, AProfileIsMadeOnceForAllWhoWaitForIt) {
  CodecOpener opener(testing::MakeTinyModel({}), "", Isa::kRef);
  std::atomic<int> made{0};
  const ProgressFn progress = [&](std::string_view, double fraction) {
    if (fraction == 1.0) ++made;
  };
  std::vector<std::thread> threads;
  std::vector<absl::StatusOr<OpenedCodec>> opened(4);
  for (size_t i = 0; i < opened.size(); ++i) {
    threads.emplace_back([&, i] {
      const std::string spec =
          "xquant-cl-gqa:bits=" + std::to_string(i < 2 ? 2 : 4);
      if (i % 2 == 0) {
        EXPECT_TRUE(opener.Prepare(spec, progress).ok());
      }
      opened[i] = opener.Open(spec, progress);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(made, 1);
  for (const auto& codec : opened) {
    ASSERT_TRUE(codec.ok()) << codec.status();
    EXPECT_EQ(codec->profile, opened[0]->profile);
  }
  EXPECT_EQ(opened[0]->cache_fp, opened[1]->cache_fp);
  EXPECT_NE(opened[0]->cache_fp, opened[2]->cache_fp);
}

// What is at hand is opened while another profile is being made.
TEST(CodecOpenerTest, NobodyWaitsForAProfileThatHeDoesNotNeed) {
  CodecOpener opener(testing::MakeTinyModel({}), "", Isa::kRef);
  ASSERT_TRUE(opener.Prepare("xquant-gqa", {}).ok());
  bool opened_meanwhile = false;
  const ProgressFn progress = [&](std::string_view, double) {
    opened_meanwhile = opener.Open("xquant-gqa:bits=3", {}).ok() &&
                       opener.Open("kv-fp16", {}).ok();
  };
  ASSERT_TRUE(opener.Prepare("xquant-cl-gqa", progress).ok());
  EXPECT_TRUE(opened_meanwhile);
}

TEST(CodecOpenerTest, PrepareNamesWhatIsWrong) {
  CodecOpener opener(testing::MakeTinyModel({}), "", Isa::kRef);
  EXPECT_THAT(std::string(opener.Prepare("zip", {}).message()),
              HasSubstr("xquant-gqa"));
  EXPECT_FALSE(opener.Prepare("xquant-gqa:bits", {}).ok());
  EXPECT_TRUE(opener.Prepare("kv-fp16", {}).ok());
}

}  // namespace
}  // namespace xcache
