#include "server/grpc/tls.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/server/grpc/test_certificates.h"

namespace xcache {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::WriteTestFile;

class TlsTest : public ::testing::Test {
 protected:
  const testing::TestCertificates certs_ = testing::MakeTestCertificates();
  const std::string cert_ = WriteTestFile("cert.pem", certs_.server_cert);
  const std::string key_ = WriteTestFile("key.pem", certs_.server_key);
  const std::string ca_ = WriteTestFile("ca.pem", certs_.ca_cert);

  static std::string Error(const TlsFiles& files) {
    const auto credentials = MakeCredentials(files);
    EXPECT_FALSE(credentials.ok());
    return std::string(credentials.status().message());
  }
};

TEST_F(TlsTest, GoodFilesGiveCredentials) {
  EXPECT_TRUE(MakeCredentials({}).ok());
  EXPECT_TRUE(MakeCredentials({cert_, key_, ""}).ok());
  EXPECT_TRUE(MakeCredentials({cert_, key_, ca_}).ok());
}

TEST_F(TlsTest, MissingFilesAreNamed) {
  EXPECT_THAT(Error({"/no/cert", key_, ""}),
              AllOf(HasSubstr("--tls-cert"), HasSubstr("/no/cert")));
  EXPECT_THAT(Error({cert_, "/no/key", ""}),
              AllOf(HasSubstr("--tls-key"), HasSubstr("/no/key")));
  EXPECT_THAT(Error({cert_, key_, "/no/ca"}),
              AllOf(HasSubstr("--tls-client-ca"), HasSubstr("/no/ca")));
  EXPECT_THAT(Error({::testing::TempDir(), key_, ""}), HasSubstr("--tls-cert"));
}

TEST_F(TlsTest, WrongContentsAreNamed) {
  EXPECT_THAT(Error({key_, key_, ""}), HasSubstr("no certificate"));
  EXPECT_THAT(Error({cert_, cert_, ""}), HasSubstr("no private key"));
  EXPECT_THAT(Error({cert_, key_, key_}), HasSubstr("--tls-client-ca"));
  const std::string other = WriteTestFile("other.pem", certs_.client_key);
  EXPECT_THAT(Error({cert_, other, ""}), HasSubstr("is not the key"));
  const std::string cut = WriteTestFile(
      "cut.pem", certs_.server_cert.substr(0, certs_.server_cert.size() / 2));
  EXPECT_THAT(Error({cut, key_, ""}), HasSubstr("no certificate"));
}

TEST_F(TlsTest, AnExpiredCertificateIsRefused) {
  EXPECT_THAT(Error({WriteTestFile("old.pem", certs_.expired_cert),
                     WriteTestFile("oldkey.pem", certs_.expired_key), ""}),
              HasSubstr("expired"));
}

}  // namespace
}  // namespace xcache
