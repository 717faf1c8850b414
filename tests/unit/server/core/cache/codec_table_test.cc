#include "server/core/cache/codec_table.h"

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace xcache {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

constexpr size_t kCodecBytes = 1000;

// Opens any spec; "x" is spelled "X" canonically.
class CodecEngine final : public Engine {
 public:
  CodecEngine() { info_.n_heads = info_.n_kv_heads = 1; }
  const ModelInfo& info() const override { return info_; }
  absl::StatusOr<const CodecHandle*> OpenCodec(std::string_view spec,
                                               const ProgressFn&) override {
    ++num_opened;
    if (spec == "bad") return absl::InvalidArgumentError("bad");
    const std::string name = spec == "x" ? "X" : std::string(spec);
    auto& handle = handles_[name];
    if (handle == nullptr) handle = std::make_unique<Handle>(name);
    return handle.get();
  }
  absl::StatusOr<size_t> codec_bytes(std::string_view) const override {
    return kCodecBytes;
  }
  void CloseCodec(const CodecHandle& codec) override {
    ASSERT_EQ(handles_.erase(std::string(codec.spec())), 1u);
  }
  size_t kv_block_bytes() const override { return 0; }
  size_t sequence_bytes(const CodecHandle&) const override { return 0; }
  absl::StatusOr<std::unique_ptr<Sequence>> NewSequence(
      const CodecHandle&, std::span<const TokenId>, std::span<const KvBlockRef>,
      RematPolicy) override {
    return absl::UnimplementedError("it only opens codecs");
  }
  std::vector<absl::StatusOr<KvBlockRef>> Remat(
      const CodecHandle&, std::span<const RematJob>) override {
    return {};
  }
  absl::Status Step(std::span<StepItem>) override {
    return absl::UnimplementedError("it only opens codecs");
  }

  std::set<std::string> open() const {
    std::set<std::string> specs;
    for (const auto& [spec, handle] : handles_) specs.insert(spec);
    return specs;
  }
  int num_opened = 0;

 private:
  struct Handle final : CodecHandle {
    explicit Handle(std::string spec) : name(std::move(spec)) {}
    std::string_view spec() const override { return name; }
    const Digest& cache_fp() const override { return fingerprint; }
    size_t page_bytes() const override { return 640; }
    const std::string name;
    const Digest fingerprint{};
  };
  ModelInfo info_;
  std::map<std::string, std::unique_ptr<Handle>> handles_;
};

TEST(CodecTableTest, AnyNumberOfSpecsTakesTheMemoryOfAFew) {
  MemoryBudget memory(1 << 20);
  CodecEngine engine;
  CodecTable table(memory, 3);
  for (int i = 0; i < 107; ++i) {
    ASSERT_TRUE(table.Open(engine, absl::StrCat("codec", i), {}).ok());
    EXPECT_LE(memory.used_bytes(MemoryAccount::kCodecs),
              static_cast<int64_t>(3 * kCodecBytes));
  }
  EXPECT_THAT(engine.open(),
              UnorderedElementsAre("codec104", "codec105", "codec106"));
  EXPECT_EQ(table.Find("codec0"), nullptr);
  // Its pages are as large as they were.
  EXPECT_EQ(table.PageBytes("codec0"), 640u);
  EXPECT_EQ(table.PageBytes("never"), 0u);
}

TEST(CodecTableTest, TheOneUsedLongestAgoGoesThatNobodyHolds) {
  MemoryBudget memory(1 << 20);
  CodecEngine engine;
  CodecTable table(memory, 3);
  CodecRef a = *table.Open(engine, "a", {});
  ASSERT_TRUE(table.Open(engine, "b", {}).ok());
  ASSERT_TRUE(table.Open(engine, "c", {}).ok());
  ASSERT_NE(table.Find("b"), nullptr);  // a use
  ASSERT_TRUE(table.Open(engine, "d", {}).ok());
  EXPECT_THAT(engine.open(), UnorderedElementsAre("a", "b", "d"));
  a.reset();
  ASSERT_TRUE(table.Open(engine, "e", {}).ok());
  EXPECT_THAT(engine.open(), UnorderedElementsAre("b", "d", "e"));
}

TEST(CodecTableTest, WhileAllAreHeldOneMoreIsRefusedAndNamesThem) {
  MemoryBudget memory(1 << 20);
  CodecEngine engine;
  CodecTable table(memory, 2);
  const CodecRef a = *table.Open(engine, "a", {});
  CodecRef b = *table.Open(engine, "b", {});
  const absl::Status refused = table.Open(engine, "c", {}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("--max-codecs"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("a; b"));
  EXPECT_EQ(*table.Open(engine, "a", {}), a);
  b.reset();
  EXPECT_TRUE(table.Open(engine, "c", {}).ok());
}

TEST(CodecTableTest, MemoryIsPromisedBeforeItIsTaken) {
  MemoryBudget memory(2 * kCodecBytes + kCodecBytes / 2);
  CodecEngine engine;
  CodecTable table(memory, 8);
  const CodecRef a = *table.Open(engine, "a", {});
  ASSERT_TRUE(table.Open(engine, "b", {}).ok());
  // There is none for a third, so the one that nobody holds makes room.
  const CodecRef c = *table.Open(engine, "c", {});
  EXPECT_THAT(engine.open(), UnorderedElementsAre("a", "c"));
  const int before = engine.num_opened;
  const absl::Status refused = table.Open(engine, "d", {}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("--memory-bytes"));
  EXPECT_EQ(engine.num_opened, before);
}

TEST(CodecTableTest, SpellingsShareACodecAndErrorsLeaveNothing) {
  MemoryBudget memory(1 << 20);
  CodecEngine engine;
  CodecTable table(memory, 8);
  const CodecRef x = *table.Open(engine, "x", {});
  EXPECT_EQ(x->spec(), "X");
  EXPECT_EQ(table.Find("x"), x);
  EXPECT_EQ(*table.Open(engine, "x", {}), x);
  EXPECT_EQ(engine.num_opened, 1);  // a spelling is asked for once
  EXPECT_EQ(*table.Open(engine, "X", {}), x);
  EXPECT_TRUE(absl::IsInvalidArgument(table.Open(engine, "bad", {}).status()));
  EXPECT_EQ(memory.used_bytes(MemoryAccount::kCodecs),
            static_cast<int64_t>(kCodecBytes));
}

}  // namespace
}  // namespace xcache
