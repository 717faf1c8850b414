// Answers of an S3 store and of STS, of any bytes: what is taken is what may be
// sent and signed again.
#include <string>

#include "cachestore/shared/xml_answers.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace xcache;
  const std::string xml(reinterpret_cast<const char*>(data), size);

  const std::string code = ParseErrorCode(xml);
  XCACHE_FUZZ_CHECK(code.size() <= 64 && code.find('\n') == code.npos);

  const auto list = ParseListAnswer(xml);
  XCACHE_FUZZ_CHECK(list.ok() || absl::IsUnavailable(list.status()));
  if (list.ok()) {
    for (const ListedObject& object : list->objects) {
      XCACHE_FUZZ_CHECK(!object.key.empty());
      XCACHE_FUZZ_CHECK(UnquoteEtag(object.etag) == object.etag);
    }
  }

  const auto credentials = ParseWebIdentityAnswer(xml);
  XCACHE_FUZZ_CHECK(credentials.ok() ||
                    absl::IsUnavailable(credentials.status()));
  if (credentials.ok()) {
    XCACHE_FUZZ_CHECK(CheckCredentials(credentials->credentials).ok());
    XCACHE_FUZZ_CHECK(!credentials->credentials.session_token.empty());
  }

  const std::string etag = UnquoteEtag(xml);
  XCACHE_FUZZ_CHECK(UnquoteEtag("\"" + etag + "\"") == etag);
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  return {
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>NoSuchKey"
      "</Code><Message>none</Message></Error>",
      "<ErrorResponse><Error><Code>ExpiredTokenException</Code></Error>"
      "</ErrorResponse>",
      "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">"
      "<IsTruncated>true</IsTruncated><Contents><Key>a&amp;b</Key>"
      "<LastModified>2009-10-12T17:50:30.000Z</LastModified>"
      "<ETag>&quot;fba9&#x41;&quot;</ETag><Size>18446744073709551615</Size>"
      "</Contents><Contents><Key><![CDATA[c]]></Key><LastModified>"
      "2009-10-12T17:50:30Z</LastModified><Size>0</Size></Contents>"
      "</ListBucketResult>",
      "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult>"
      "<Credentials><SessionToken>t</SessionToken><SecretAccessKey>s"
      "</SecretAccessKey><Expiration>2014-10-24T23:00:23Z</Expiration>"
      "<AccessKeyId>ASIA</AccessKeyId></Credentials>"
      "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
      "<!DOCTYPE x [<!ENTITY a \"b\">]><x>&a;</x>",
      std::string(2000, '<') + std::string(2000, '/'),
      "\"etag\"",
  };
}
