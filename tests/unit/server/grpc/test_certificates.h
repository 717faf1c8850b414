// Certificates for tests, made anew at each run: a small authority, and keys
// that it signs for "localhost" and 127.0.0.1.
#ifndef XCACHE_TESTS_UNIT_SERVER_GRPC_TEST_CERTIFICATES_H_
#define XCACHE_TESTS_UNIT_SERVER_GRPC_TEST_CERTIFICATES_H_

#include <string>

namespace xcache::testing {

struct TestCertificates {
  // PEM.
  std::string ca_cert;
  std::string server_cert, server_key;
  std::string client_cert, client_key;
  std::string expired_cert, expired_key;
};
TestCertificates MakeTestCertificates();

// Writes `text` to a new file of the test's temporary folder.
std::string WriteTestFile(const std::string& name, const std::string& text);

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_UNIT_SERVER_GRPC_TEST_CERTIFICATES_H_
