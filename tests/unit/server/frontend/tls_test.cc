#include "server/frontend/tls.h"

#include <sys/stat.h>

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
    const auto identity = TlsIdentity::Load(files);
    EXPECT_FALSE(identity.ok());
    return std::string(identity.status().message());
  }
};

TEST_F(TlsTest, GoodFilesAreRead) {
  const auto identity = TlsIdentity::Load({cert_, key_, ca_});
  ASSERT_TRUE(identity.ok()) << identity.status();
  EXPECT_EQ((*identity)->pem()->cert, certs_.server_cert);
  EXPECT_EQ((*identity)->pem()->client_ca, certs_.ca_cert);
  EXPECT_TRUE(TlsIdentity::Load({cert_, key_, ""}).ok());
}

TEST_F(TlsTest, AReloadTakesGoodFilesAndKeepsOutBadOnes) {
  const auto identity = TlsIdentity::Load({cert_, key_, ""}).value();
  WriteTestFile("cert.pem", certs_.client_cert);  // not the key's
  EXPECT_FALSE(identity->Reload().ok());
  EXPECT_EQ(identity->pem()->cert, certs_.server_cert);
  EXPECT_EQ(identity->pem()->generation, 1u);
  WriteTestFile("key.pem", certs_.client_key);
  EXPECT_TRUE(identity->Reload().ok());
  EXPECT_EQ(identity->pem()->cert, certs_.client_cert);
  EXPECT_EQ(identity->pem()->generation, 2u);
}

TEST_F(TlsTest, AKeyThatEverybodyMayReadIsRefused) {
  ASSERT_EQ(chmod(key_.c_str(), 0644), 0);
  EXPECT_THAT(Error({cert_, key_, ""}),
              AllOf(HasSubstr("--tls-key"), HasSubstr("0644")));
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
