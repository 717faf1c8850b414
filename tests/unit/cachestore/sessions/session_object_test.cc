#include "cachestore/sessions/session_object.h"

#include "cachestore/sessions/session_record.h"
#include "tests/unit/cachestore/store_test_util.h"

namespace xcache {
namespace {

SessionObject Sample() {
  SessionObject object = {
      .revision = MakeRevision(),
      .ancestry = {MakeRevision(), MakeRevision()},
      .written_ms = 1'700'000'000'123,
      .is_deleted = false,
      .manifest = EncodeSessionRecord(RecordOf("t", "c", 2))};
  return object;
}

TEST(SessionObjectTest, ComesBackAsItWas) {
  const SessionObject object = Sample();
  EXPECT_EQ(*DecodeSessionObject(EncodeSessionObject(object)), object);
  SessionObject mark = object;
  mark.is_deleted = true;
  mark.manifest.clear();
  EXPECT_EQ(*DecodeSessionObject(EncodeSessionObject(mark)), mark);
}

TEST(SessionObjectTest, EveryFlipCutAndAdditionIsDataLoss) {
  const std::string good = EncodeSessionObject(Sample());
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 4);
    ASSERT_THAT(DecodeSessionObject(bad).status(),
                HasCode(absl::StatusCode::kDataLoss))
        << "byte " << i;
    ASSERT_THAT(DecodeSessionObject(good.substr(0, i)).status(),
                HasCode(absl::StatusCode::kDataLoss))
        << i << " bytes";
  }
  EXPECT_FALSE(DecodeSessionObject(good + "x").ok());
}

TEST(SessionObjectTest, AnotherFormatIsNamedAndNoDamage) {
  std::string bytes = EncodeSessionObject(Sample());
  bytes[4] = 7;
  FixCrc(bytes);
  const absl::Status status = DecodeSessionObject(bytes).status();
  EXPECT_THAT(status, HasCode(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("version 7"));
}

// FORMAT.md's layout.
TEST(SessionObjectTest, HasTheDocumentedBytes) {
  SessionObject object;
  object.ancestry.resize(1);
  object.written_ms = 258;
  object.manifest = "m";
  const std::string bytes = EncodeSessionObject(object);
  EXPECT_EQ(bytes.substr(0, 7), std::string("XSSO\1\0\0", 7));
  EXPECT_EQ(bytes.substr(23, 1), "\1");
  EXPECT_EQ(bytes.substr(40, 8), std::string("\2\1\0\0\0\0\0\0", 8));
  EXPECT_EQ(bytes.substr(48, 5), std::string("\1\0\0\0m", 5));
  EXPECT_EQ(bytes.size(), 57u);
}

TEST(SessionVersionTest, KnowsWhatItCameFrom) {
  for (const bool is_ahead : {false, true}) {
    SessionVersion version = {.etag = "e", .revision = MakeRevision()};
    const Revision first = version.revision;
    const size_t most = is_ahead ? kMaxAncestryAhead : kMaxAncestry;
    for (size_t i = 0; i <= most; ++i) {
      version.is_ahead = is_ahead;
      const SessionVersion next = version.Next();
      EXPECT_EQ(next.etag, "e");
      EXPECT_TRUE(next.is_ahead);
      EXPECT_EQ(next.ancestry.front(), version.revision);
      EXPECT_LE(next.ancestry.size(), most);
      const SessionObject object = {.revision = next.revision,
                                    .ancestry = next.ancestry,
                                    .manifest = "m"};
      EXPECT_EQ(object.Holds(first), i < most);
      EXPECT_EQ(*DecodeSessionVersion(EncodeSessionVersion(next)), next);
      EXPECT_EQ(*DecodeSessionObject(EncodeSessionObject(object)), object);
      version = next;
    }
    // Once it is in the store, as much as others may have to know.
    version.is_ahead = false;
    EXPECT_EQ(version.Next().ancestry.size(), kMaxAncestry);
  }
}

TEST(SessionVersionTest, OtherBytesAreNone) {
  const std::string good = EncodeSessionVersion(
      {.etag = "e", .revision = MakeRevision(), .ancestry = {MakeRevision()}});
  EXPECT_FALSE(DecodeSessionVersion("").has_value());
  for (size_t i = 0; i < good.size(); ++i) {
    EXPECT_FALSE(DecodeSessionVersion(good.substr(0, i)).has_value());
  }
  EXPECT_FALSE(DecodeSessionVersion(good + "x").has_value());
}

TEST(SessionObjectKeyTest, TellsOfNeitherNameAndOfEachPairApart) {
  const std::string key = SessionObjectKey("tenant", "chat");
  EXPECT_EQ(key.find("tenant"), std::string::npos);
  EXPECT_EQ(key.find("chat"), std::string::npos);
  EXPECT_EQ(key.rfind(SessionObjectPrefix("tenant"), 0), 0u);
  EXPECT_NE(key, SessionObjectKey("tenantc", "hat"));
  EXPECT_NE(SessionObjectPrefix("a"), SessionObjectPrefix("b"));
}

}  // namespace
}  // namespace xcache
