// The examples that AWS publishes:
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
#include "cachestore/shared/sigv4.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace xcache {
namespace {

using testing::EndsWith;
using testing::HasSubstr;

constexpr int64_t kExampleTime = 1369353600;  // 2013-05-24T00:00:00Z

Credentials ExampleCredentials() {
  return {.access_key_id = "AKIAIOSFODNN7EXAMPLE",
          .secret_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
          .session_token = ""};
}

SigV4Request Example(const std::string& path) {
  return {.method = "GET",
          .path = path,
          .query = {},
          .headers = {{"host", "examplebucket.s3.amazonaws.com"}},
          .payload_digest = Sha256Of(""),
          .region = "us-east-1",
          .service = "s3",
          .unix_s = kExampleTime};
}

std::string Find(const NameValues& headers, const std::string& name) {
  for (const auto& [have, value] : headers) {
    if (have == name) return value;
  }
  return "";
}

std::string Authorization(const SigV4Request& request) {
  return Find(SignSigV4(request, ExampleCredentials()), "authorization");
}

TEST(SigV4Test, TheExampleGetObject) {
  SigV4Request request = Example("/test.txt");
  request.headers.emplace_back("range", "bytes=0-9");
  EXPECT_EQ(
      Authorization(request),
      "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/"
      "aws4_request,SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
      "Signature="
      "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
}

TEST(SigV4Test, TheExamplePutObject) {
  SigV4Request request = Example(UriEncode("/test$file.text", false));
  request.method = "PUT";
  request.headers.emplace_back("date", "Fri, 24 May 2013 00:00:00 GMT");
  request.headers.emplace_back("x-amz-storage-class", "REDUCED_REDUNDANCY");
  request.payload_digest = Sha256Of("Welcome to Amazon S3.");
  EXPECT_THAT(
      Authorization(request),
      EndsWith("SignedHeaders=date;host;x-amz-content-sha256;x-amz-date;"
               "x-amz-storage-class,Signature="
               "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108"
               "bd"));
}

TEST(SigV4Test, TheExampleGetBucketLifecycle) {
  SigV4Request request = Example("/");
  request.query = {{"lifecycle", ""}};
  EXPECT_THAT(
      Authorization(request),
      EndsWith("Signature="
               "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a01367835"
               "43"));
}

TEST(SigV4Test, TheExampleListObjectsWhateverTheOrderOfItsQuery) {
  SigV4Request request = Example("/");
  request.query = {{"prefix", "J"}, {"max-keys", "2"}};
  EXPECT_THAT(
      Authorization(request),
      EndsWith("Signature="
               "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6"
               "f7"));
}

TEST(SigV4Test, ASessionsTokenIsSentAndSigned) {
  Credentials credentials = ExampleCredentials();
  credentials.session_token = "of-the-session";
  const NameValues added = SignSigV4(Example("/a"), credentials);
  EXPECT_EQ(Find(added, "x-amz-security-token"), "of-the-session");
  EXPECT_THAT(Find(added, "authorization"),
              HasSubstr(";x-amz-security-token,"));
  EXPECT_EQ(Find(SignSigV4(Example("/a"), ExampleCredentials()),
                 "x-amz-security-token"),
            "");
}

TEST(SigV4Test, EveryPartOfTheRequestChangesTheSignature) {
  const std::string as_is = Authorization(Example("/a"));
  EXPECT_EQ(as_is, Authorization(Example("/a")));
  EXPECT_NE(as_is, Authorization(Example("/b")));
  SigV4Request other = Example("/a");
  other.method = "PUT";
  EXPECT_NE(as_is, Authorization(other));
  other = Example("/a");
  other.payload_digest = Sha256Of("x");
  EXPECT_NE(as_is, Authorization(other));
  other = Example("/a");
  other.region = "eu-west-1";
  EXPECT_NE(as_is, Authorization(other));
  other = Example("/a");
  other.service = "sts";
  EXPECT_NE(as_is, Authorization(other));
  other = Example("/a");
  ++other.unix_s;
  EXPECT_NE(as_is, Authorization(other));
}

TEST(SigV4Test, OnlyUnreservedCharactersAreNotEncoded) {
  EXPECT_EQ(UriEncode("aZ09-._~", true), "aZ09-._~");
  EXPECT_EQ(UriEncode("a b/c+%\xC3\xA9*", true), "a%20b%2Fc%2B%25%C3%A9%2A");
  EXPECT_EQ(UriEncode("a b/c", false), "a%20b/c");
  EXPECT_EQ(CanonicalQuery({{"b", "2 3"}, {"a", "/"}, {"a-", ""}}),
            "a=%2F&a-=&b=2%203");
}

TEST(SigV4Test, TimeIsUtc) {
  EXPECT_EQ(SigV4Time(kExampleTime), "20130524T000000Z");
  EXPECT_EQ(SigV4Time(0), "19700101T000000Z");
  EXPECT_EQ(SigV4Time(1582934399), "20200228T235959Z");
}

}  // namespace
}  // namespace xcache
