#include "cachestore/sessions/session_record.h"

#include "engine/base/crc32c.h"
#include "tests/unit/cachestore/store_test_util.h"

namespace xcache {
namespace {

TEST(SessionRecordTest, RoundTrips) {
  SessionRecord record = RecordOf("tenant", "chat-1", 5);
  record.pinned = true;
  record.messages[0].content = std::string("\0\xff nul", 6);
  const auto decoded = DecodeSessionRecord(EncodeSessionRecord(record));
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(*decoded, record);
  const SessionRecord empty;
  const auto decoded_empty = DecodeSessionRecord(EncodeSessionRecord(empty));
  ASSERT_TRUE(decoded_empty.ok()) << decoded_empty.status();
  EXPECT_EQ(*decoded_empty, empty);
}

// The document's layout, field by field, for a record with little in it.
TEST(SessionRecordTest, HasTheDocumentedBytes) {
  SessionRecord record;
  record.tenant = "t";
  record.id = "id";
  record.tokens = {258};
  const std::string bytes = EncodeSessionRecord(record);
  EXPECT_EQ(bytes.substr(0, 4), "XSES");
  EXPECT_EQ(bytes.substr(4, 4), std::string("\2\0\0\0", 4));
  EXPECT_EQ(static_cast<uint8_t>(bytes[8]), bytes.size() & 0xff);
  EXPECT_EQ(bytes.substr(16, 11), std::string("\1\0\0\0t\2\0\0\0id", 11));
  // title, times, codec, digests, numerics id, turn, pinned: all zero.
  const size_t counts_at = 27 + 4 + 32 + 4 + 64 + 4 + 8 + 1;
  EXPECT_EQ(bytes.substr(27, counts_at - 27),
            std::string(counts_at - 27, '\0'));
  EXPECT_EQ(bytes.substr(counts_at, 4), std::string("\1\0\0\0", 4));
  // messages, pages, bytes of pages, the last page.
  EXPECT_EQ(bytes.substr(counts_at + 4, 48), std::string(48, '\0'));
  const size_t tokens_at = counts_at + 56;
  EXPECT_EQ(static_cast<uint8_t>(bytes[12]), tokens_at);
  EXPECT_EQ(bytes.substr(tokens_at, 8), std::string("\1\0\0\0\2\1\0\0", 8));
  EXPECT_EQ(bytes.size(), tokens_at + 8 + 4 + 4 + 4 + 4);
}

TEST(SessionRecordTest, EveryFlippedByteIsDataLoss) {
  const std::string good = EncodeSessionRecord(RecordOf("t", "chat", 3));
  for (size_t i = 0; i < good.size(); ++i) {
    for (int bit : {0, 3, 7}) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ (1 << bit));
      ASSERT_THAT(DecodeSessionRecord(bad).status(),
                  HasCode(absl::StatusCode::kDataLoss))
          << "byte " << i;
    }
  }
}

TEST(SessionRecordTest, EveryTruncationAndAnyExtraByteIsDataLoss) {
  const std::string good = EncodeSessionRecord(RecordOf("t", "chat", 3));
  for (size_t size = 0; size < good.size(); ++size) {
    ASSERT_THAT(DecodeSessionRecord(good.substr(0, size)).status(),
                HasCode(absl::StatusCode::kDataLoss))
        << size;
  }
  EXPECT_THAT(DecodeSessionRecord(good + '\0').status(),
              HasCode(absl::StatusCode::kDataLoss));
}

// Lengths that lie, behind a checksum that is right.
TEST(SessionRecordTest, EveryLyingByteUnderAGoodChecksumIsNoCrash) {
  const SessionRecord record = RecordOf("t", "chat", 2);
  const std::string good = EncodeSessionRecord(record);
  for (size_t i = 12; i + 4 < good.size(); ++i) {
    for (int value : {0x00, 0x7f, 0xff}) {
      std::string bad = good;
      if (bad[i] == static_cast<char>(value)) continue;
      bad[i] = static_cast<char>(value);
      FixCrc(bad);
      const auto decoded = DecodeSessionRecord(bad);
      // Either it is refused, or it means exactly these bytes.
      if (decoded.ok()) {
        ASSERT_EQ(EncodeSessionRecord(*decoded), bad) << "byte " << i;
      } else {
        ASSERT_THAT(decoded.status(), HasCode(absl::StatusCode::kDataLoss));
      }
    }
  }
}

TEST(SessionRecordTest, AnotherVersionIsNamedAndNoDamage) {
  std::string bytes = EncodeSessionRecord(RecordOf("t", "chat", 1));
  bytes[4] = 9;
  FixCrc(bytes);
  const auto decoded = DecodeSessionRecord(bytes);
  EXPECT_THAT(decoded.status(), HasCode(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(std::string(decoded.status().message()),
              ::testing::AllOf(::testing::HasSubstr("version 9"),
                               ::testing::HasSubstr("versions 1 to 3")));
}

// The rest is as in format 2, which older servers read.
TEST(SessionRecordTest, AVersionInASharedStoreMakesItFormat3) {
  SessionRecord record = RecordOf("t", "chat", 2);
  EXPECT_EQ(EncodeSessionRecord(record)[4], 2);
  record.version = "version";
  const std::string bytes = EncodeSessionRecord(record);
  EXPECT_EQ(bytes[4], 3);
  const auto decoded = DecodeSessionRecord(bytes);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(*decoded, record);
  EXPECT_EQ(*DecodeSessionHead(HeadOf(bytes)), SummaryOf(record));
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::string bad = bytes;
    bad[i] = static_cast<char>(bad[i] ^ 1);
    ASSERT_FALSE(DecodeSessionRecord(bad).ok()) << "byte " << i;
  }
  // Each is written in one way.
  std::string other = EncodeSessionRecord(RecordOf("t", "chat", 2));
  other[4] = 3;
  FixCrc(other);
  EXPECT_THAT(DecodeSessionRecord(other).status(),
              HasCode(absl::StatusCode::kDataLoss));
}

// By itself, and where the rest of its manifest is damaged.
TEST(SessionRecordTest, HeadSaysWhatTheRecordDoes) {
  SessionRecord record = RecordOf("tenant", "chat", 5);
  record.page_bytes = 77;
  record.pinned = true;
  const std::string manifest = EncodeSessionRecord(record);
  const std::string head(HeadOf(manifest));
  EXPECT_LT(head.size(), manifest.size() / 2);
  std::string damaged = manifest;
  damaged[head.size() + 3] ^= 1;
  for (const std::string& bytes : {head, manifest, damaged}) {
    const auto summary = DecodeSessionHead(bytes);
    ASSERT_TRUE(summary.ok()) << summary.status();
    EXPECT_EQ(*summary, SummaryOf(record));
    EXPECT_EQ(summary->num_pages, 5u);
    EXPECT_EQ(summary->last_page, record.page_keys.back());
  }
}

TEST(SessionRecordTest, EveryDamageToAHeadIsFound) {
  const std::string manifest = EncodeSessionRecord(RecordOf("t", "chat", 2));
  const std::string head(HeadOf(manifest));
  for (size_t i = 0; i < head.size(); ++i) {
    EXPECT_FALSE(DecodeSessionHead(head.substr(0, i)).ok()) << i;
    // What is behind it, and its own length of the whole, it does not need.
    if (i >= 6 && i < 12) continue;
    std::string bad = head;
    bad[i] = static_cast<char>(bad[i] ^ 0x10);
    EXPECT_FALSE(DecodeSessionHead(bad).ok()) << i;
  }
  EXPECT_THAT(DecodeSessionHead(EncodeSessionRecord1(RecordOf("t", "chat", 2)))
                  .status(),
              HasCode(absl::StatusCode::kFailedPrecondition));
}

TEST(SessionRecordTest, RecordsOfFormat1AreRead) {
  const SessionRecord record = RecordOf("t", "chat", 3);
  EXPECT_EQ(*DecodeSessionRecord(EncodeSessionRecord1(record)), record);
}

TEST(SessionRecordTest, MessageOutsideItsTokensIsDataLoss) {
  SessionRecord record = RecordOf("t", "chat", 1);
  record.messages[0].token_end = 1000;
  EXPECT_THAT(DecodeSessionRecord(EncodeSessionRecord(record)).status(),
              HasCode(absl::StatusCode::kDataLoss));
}

}  // namespace
}  // namespace xcache
