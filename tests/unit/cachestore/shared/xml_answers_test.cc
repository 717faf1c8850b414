#include "cachestore/shared/xml_answers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace xcache {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr char kList[] = R"(<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
  <Name>bucket</Name><Prefix/><KeyCount>2</KeyCount><MaxKeys>2</MaxKeys>
  <IsTruncated>true</IsTruncated>
  <Contents><Key>a&amp;b</Key><LastModified>2009-10-12T17:50:30.000Z</LastModified>
    <ETag>&quot;fba9dede5f27731c9771645a39863328&quot;</ETag><Size>434234</Size>
    <StorageClass>STANDARD</StorageClass></Contents>
  <Contents><Key>c</Key><LastModified>2009-10-12T17:50:31Z</LastModified>
    <ETag>abc</ETag><Size>0</Size></Contents>
</ListBucketResult>)";

TEST(XmlAnswersTest, AList) {
  const auto answer = ParseListAnswer(kList);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_TRUE(answer->is_truncated);
  ASSERT_EQ(answer->objects.size(), 2u);
  EXPECT_EQ(answer->objects[0].key, "a&b");
  EXPECT_EQ(answer->objects[0].etag, "fba9dede5f27731c9771645a39863328");
  EXPECT_EQ(answer->objects[0].num_bytes, 434234u);
  EXPECT_EQ(answer->objects[0].modified_unix_ms, 1255369830000);
  EXPECT_EQ(answer->objects[1].etag, "abc");
  EXPECT_EQ(answer->objects[1].modified_unix_ms, 1255369831000);
}

TEST(XmlAnswersTest, AListCutShortAnywhereIsUnavailable) {
  const std::string whole = kList;
  for (size_t n = 0; n < whole.size(); ++n) {
    EXPECT_TRUE(
        absl::IsUnavailable(ParseListAnswer(whole.substr(0, n)).status()))
        << n;
  }
}

TEST(XmlAnswersTest, WhatIsNoListIsUnavailable) {
  for (const char* xml :
       {"<html><body>Login</body></html>",
        "<ListBucketResult></ListBucketResult>",
        "<ListBucketResult><IsTruncated>maybe</IsTruncated></ListBucketResult>",
        "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a"
        "</Key><LastModified>2009-10-12T17:50:30Z</LastModified><Size>-1"
        "</Size></Contents></ListBucketResult>",
        "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a"
        "</Key><LastModified>yesterday</LastModified><Size>1"
        "</Size></Contents></ListBucketResult>",
        "<ListBucketResult><IsTruncated>false</IsTruncated><Contents>"
        "<LastModified>2009-10-12T17:50:30Z</LastModified><Size>1"
        "</Size></Contents></ListBucketResult>"}) {
    EXPECT_TRUE(absl::IsUnavailable(ParseListAnswer(xml).status())) << xml;
  }
  EXPECT_THAT(std::string(ParseListAnswer("<html/>").status().message()),
              HasSubstr("<html>"));
}

TEST(XmlAnswersTest, ErrorCodesOfS3AndSts) {
  EXPECT_EQ(ParseErrorCode("<Error><Code>NoSuchKey</Code></Error>"),
            "NoSuchKey");
  EXPECT_EQ(ParseErrorCode("<ErrorResponse xmlns='x'><Error><Type>Sender"
                           "</Type><Code>ExpiredTokenException</Code></Error>"
                           "</ErrorResponse>"),
            "ExpiredTokenException");
  for (const char* none : {"", "no healthy upstream", "<Error/>",
                           "<Error><Code>a b</Code></Error>",
                           "<Error><Code>NoSuchKey", "<Code>x</Code>"}) {
    EXPECT_EQ(ParseErrorCode(none), "") << none;
  }
}

std::string StsAnswer(const std::string& token, const std::string& expires) {
  return "<AssumeRoleWithWebIdentityResponse "
         "xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">"
         "<AssumeRoleWithWebIdentityResult><Credentials><SessionToken>" +
         token +
         "</SessionToken><SecretAccessKey>s3cret</SecretAccessKey>"
         "<Expiration>" +
         expires +
         "</Expiration><AccessKeyId>ASIA1</AccessKeyId></Credentials>"
         "</AssumeRoleWithWebIdentityResult>"
         "</AssumeRoleWithWebIdentityResponse>";
}

TEST(XmlAnswersTest, CredentialsOfWebIdentity) {
  const auto answer =
      ParseWebIdentityAnswer(StsAnswer("token", "2014-10-24T23:00:23Z"));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->credentials, (Credentials{"ASIA1", "s3cret", "token"}));
  EXPECT_EQ(answer->expires_unix_ms, 1414191623000);
  for (const std::string& bad :
       {StsAnswer("", "2014-10-24T23:00:23Z"), StsAnswer("token", "soon"),
        StsAnswer("to ken", "2014-10-24T23:00:23Z"), std::string("<x/>")}) {
    const auto refused = ParseWebIdentityAnswer(bad).status();
    EXPECT_TRUE(absl::IsUnavailable(refused));
    EXPECT_THAT(std::string(refused.message()), Not(HasSubstr("s3cret")));
  }
}

TEST(XmlAnswersTest, EtagsWithoutQuotes) {
  EXPECT_EQ(UnquoteEtag("\"abc-2\""), "abc-2");
  EXPECT_EQ(UnquoteEtag("abc"), "abc");
  for (const std::string& none :
       {std::string(), std::string("\"\""), std::string("\"a"),
        std::string("a b"), std::string("*"), std::string("a\r\nb"),
        std::string(129, 'a')}) {
    EXPECT_EQ(UnquoteEtag(none), "") << none;
  }
}

}  // namespace
}  // namespace xcache
