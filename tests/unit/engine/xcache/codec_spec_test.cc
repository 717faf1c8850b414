#include <string>

#include "engine/xcache/codec.h"
#include "engine/xcache/codec_impl.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace xcache {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

TEST(CodecSpecTest, ParsesAndSortsOptions) {
  const auto spec = CodecSpec::Parse("xquant-gqa:rotate=off,bits=4");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->name, "xquant-gqa");
  EXPECT_EQ(spec->ToString(), "xquant-gqa:bits=4,rotate=off");
}

TEST(CodecSpecTest, NameAloneHasNoColon) {
  const auto spec = CodecSpec::Parse("kv-fp16");
  ASSERT_TRUE(spec.ok());
  EXPECT_EQ(spec->ToString(), "kv-fp16");
}

TEST(CodecSpecTest, BadSyntaxIsInvalidArgument) {
  for (const char* text :
       {"", ":", "a:", ":a=b", "a:b", "a:b=", "a:=c", "a:b=c,", "a:,b=c",
        "a:b=c,,d=e", "a b", "a:b=c=d", "A", "a:b=c\n", "a:b=c:d=e",
        "a:b=1,b=2", "a:b=1,c=2,b=1"}) {
    const auto spec = CodecSpec::Parse(text);
    EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(spec.status().message()), HasSubstr("expected"));
  }
}

TEST(CodecSpecTest, LongTextIsQuotedInPart) {
  const auto spec = CodecSpec::Parse(std::string(100000, '!'));
  ASSERT_FALSE(spec.ok());
  EXPECT_LT(spec.status().message().size(), 300u);
}

TEST(OptionReaderTest, FillsDefaultsInCanonicalOrder) {
  const auto spec = CodecSpec::Parse("c:group=32");
  OptionReader options(*spec);
  EXPECT_EQ(options.Preset("preset", {"p", "q"}, "q"), "q");
  EXPECT_EQ(options.Choice("group", {"32", "64"}, "64"), "32");
  EXPECT_EQ(options.Choice("bits", {"2", "4"}, "4"), "4");
  const auto canonical = options.Finish();
  ASSERT_TRUE(canonical.ok()) << canonical.status();
  EXPECT_EQ(canonical->ToString(), "c:bits=4,group=32");
}

TEST(OptionReaderTest, UnknownOptionListsTheKnown) {
  const auto spec = CodecSpec::Parse("c:colour=red");
  OptionReader options(*spec);
  options.Choice("bits", {"2", "4"}, "4");
  const auto canonical = options.Finish();
  EXPECT_EQ(canonical.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(canonical.status().message(),
            "codec c: unknown option colour; known: bits=2|4");
}

TEST(OptionReaderTest, UnknownValueListsTheKnown) {
  const auto spec = CodecSpec::Parse("c:bits=5");
  OptionReader options(*spec);
  options.Choice("bits", {"2", "4"}, "4");
  const auto canonical = options.Finish();
  EXPECT_EQ(canonical.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(canonical.status().message(),
            "codec c: option bits=5: expected one of 2, 4");
}

TEST(RegistryTest, UnknownCodecListsTheKnown) {
  const auto kind = ProfileOf(CodecSpec{"zip", {}});
  EXPECT_EQ(kind.status().code(), absl::StatusCode::kInvalidArgument);
  for (const std::string& name : CodecNames()) {
    EXPECT_THAT(std::string(kind.status().message()), HasSubstr(name));
  }
  EXPECT_THAT(CodecNames(), Contains("kv-fp16"));
}

}  // namespace
}  // namespace xcache
