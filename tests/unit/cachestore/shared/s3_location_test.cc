#include "cachestore/shared/s3_location.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace xcache {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(S3LocationTest, ABucketAndAPrefix) {
  for (const char* text : {"s3://the-bucket", "s3://the-bucket/"}) {
    const auto location = ParseS3Location(text);
    ASSERT_TRUE(location.ok()) << location.status();
    EXPECT_EQ(location->bucket, "the-bucket");
    EXPECT_EQ(location->prefix, "");
  }
  for (const char* text : {"s3://b1.x/fleet/one", "s3://b1.x/fleet/one/"}) {
    const auto location = ParseS3Location(text);
    ASSERT_TRUE(location.ok()) << location.status();
    EXPECT_EQ(location->bucket, "b1.x");
    EXPECT_EQ(location->prefix, "fleet/one/");
  }
}

TEST(S3LocationTest, AnythingElseIsRefusedWithWhatWasExpected) {
  for (const char* text : {"",
                           "bucket",
                           "s3:/bucket",
                           "S3://bucket",
                           "http://bucket",
                           "s3://",
                           "s3:///prefix",
                           "s3://ab",
                           "s3://Bucket",
                           "s3://buck_et",
                           "s3://-bucket",
                           "s3://bucket.",
                           "s3://bu..cket",
                           "s3://bucket//",
                           "s3://bucket//a",
                           "s3://bucket/a//b",
                           "s3://bucket/../a",
                           "s3://bucket/a b",
                           "s3://bucket/\x01",
                           "s3://bucket?x/a"}) {
    const auto location = ParseS3Location(text);
    EXPECT_TRUE(absl::IsInvalidArgument(location.status())) << text;
    EXPECT_THAT(std::string(location.status().message()),
                HasSubstr("expected"));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(
      ParseS3Location("s3://" + std::string(64, 'a')).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      ParseS3Location("s3://bucket/" + std::string(513, 'a')).status()));
}

TEST(HttpEndpointTest, SchemeHostAndPort) {
  const struct {
    const char* text;
    bool tls;
    const char* host;
  } kGood[] = {
      {"http://localhost:8333", false, "localhost:8333"},
      {"http://localhost:80", false, "localhost"},
      {"https://s3.eu-west-1.amazonaws.com/", true,
       "s3.eu-west-1.amazonaws.com"},
      {"https://minio.svc:443", true, "minio.svc"},
      {"https://minio.svc:80", true, "minio.svc:80"},
      {"http://[::1]:8333", false, "[::1]:8333"},
      {"http://10.0.0.1", false, "10.0.0.1"},
  };
  for (const auto& good : kGood) {
    const auto endpoint = ParseHttpEndpoint(good.text);
    ASSERT_TRUE(endpoint.ok()) << good.text << ": " << endpoint.status();
    EXPECT_EQ(endpoint->tls, good.tls) << good.text;
    EXPECT_EQ(endpoint->host, good.host) << good.text;
  }
}

TEST(HttpEndpointTest, AnythingElseIsRefused) {
  for (const char* text : {"",
                           "localhost",
                           "localhost:8333",
                           "ftp://host",
                           "file:///etc",
                           "http://",
                           "http:///x",
                           "http:/x",
                           "http://%31",
                           "http://host/path",
                           "http://host?query",
                           "http://host/?",
                           "http://host#x",
                           "http://ho st",
                           "http://host:0",
                           "http://host:99999",
                           "http://host:x",
                           "http://h\xC3\xB6st",
                           "http://a%2fb",
                           "http://host\n",
                           "//host"}) {
    const auto endpoint = ParseHttpEndpoint(text);
    EXPECT_TRUE(absl::IsInvalidArgument(endpoint.status()))
        << text << ": " << (endpoint.ok() ? endpoint->host : "");
  }
}

TEST(HttpEndpointTest, APasswordIsRefusedAndNotRepeated) {
  const auto endpoint = ParseHttpEndpoint("https://user:geheim@host:1");
  ASSERT_TRUE(absl::IsInvalidArgument(endpoint.status()));
  EXPECT_THAT(std::string(endpoint.status().message()),
              Not(HasSubstr("geheim")));
}

TEST(ObjectKeyTest, WhatAKeyIs) {
  for (const char* key : {"a", "a/b/c", "a/..b", "A-Z_0.9!*'()=+:@,"}) {
    EXPECT_TRUE(CheckObjectKey(key).ok()) << CheckObjectKey(key);
  }
  EXPECT_TRUE(CheckObjectKey(std::string(512, 'k')).ok());
  for (const std::string& key :
       {std::string(), std::string(513, 'k'), std::string("/a"),
        std::string("a/"), std::string("a//b"), std::string("."),
        std::string("a/../b"), std::string("a\0b", 3), std::string("a b"),
        std::string("a?b"), std::string("\xC3\xA9")}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckObjectKey(key))) << key;
  }
}

TEST(RegionTest, WhatARegionIs) {
  EXPECT_TRUE(CheckRegion("us-east-1").ok());
  EXPECT_TRUE(CheckRegion("auto").ok());
  for (const char* region : {"", "US", "a b", "us/east", "us\n"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckRegion(region))) << region;
  }
}

}  // namespace
}  // namespace xcache
