#include "cachestore/shared/page_object.h"

#include <cstring>

#include "cachestore/shared/s3_location.h"
#include "tests/unit/cachestore/store_test_util.h"

namespace xcache {
namespace {

PageEnvelope Envelope() {
  return {
      .key = KeyOf(7), .parent = KeyOf(6), .put_unix_ms = 1'764'000'000'123};
}

TEST(PageObjectTest, NamesAreOfTheKeyAlone) {
  const std::string name = PageObjectName(KeyOf(7));
  const std::string hex = ToHex(KeyOf(7));
  EXPECT_EQ(name, "pages/" + hex.substr(0, 2) + "/" + hex);
  EXPECT_TRUE(CheckObjectKey(name).ok());
  EXPECT_EQ(PageFolder(0), "pages/00/");
  EXPECT_EQ(PageFolder(255), "pages/ff/");
}

TEST(PageObjectTest, WhatIsWrappedIsRead) {
  for (const size_t size : {0u, 1u, 5000u}) {
    const std::string page = BytesOf(1, size);
    const std::string object = WrapPage(Envelope(), page);
    ASSERT_EQ(object.size(), kPageEnvelopeBytes + size);
    EXPECT_EQ(object.substr(kPageEnvelopeBytes), page);
    const auto envelope = ReadPageEnvelope(object);
    ASSERT_TRUE(envelope.ok()) << envelope.status();
    EXPECT_EQ(envelope->key, KeyOf(7));
    EXPECT_EQ(envelope->parent, KeyOf(6));
    EXPECT_EQ(envelope->put_unix_ms, 1'764'000'000'123);
  }
}

TEST(PageObjectTest, EveryFlippedByteAndEveryCutIsDataLoss) {
  const std::string whole = WrapPage(Envelope(), BytesOf(2, 100));
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string damaged = whole;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x41);
    EXPECT_THAT(ReadPageEnvelope(damaged).status(),
                HasCode(absl::StatusCode::kDataLoss))
        << i;
    EXPECT_THAT(ReadPageEnvelope(whole.substr(0, i)).status(),
                HasCode(absl::StatusCode::kDataLoss))
        << i;
  }
  EXPECT_THAT(ReadPageEnvelope(whole + "x").status(),
              HasCode(absl::StatusCode::kDataLoss));
}

}  // namespace
}  // namespace xcache
