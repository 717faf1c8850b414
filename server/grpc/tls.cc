#include "server/grpc/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "server/frontend/read_file.h"

namespace xcache {
namespace {

struct Free {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* cert) const { X509_free(cert); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
template <typename T>
using Ptr = std::unique_ptr<T, Free>;

// Far above any chain of certificates.
constexpr size_t kMaxPemBytes = size_t{4} << 20;

absl::StatusOr<std::string> ReadFile(const std::string& path,
                                     std::string_view flag) {
  auto text = ReadSmallFile(path, kMaxPemBytes);
  if (!text.ok()) {
    return absl::Status(
        text.status().code(),
        absl::StrCat(std::string(flag), " ", text.status().message()));
  }
  return text;
}

absl::StatusOr<Ptr<X509>> ParseCertificate(const std::string& pem,
                                           const std::string& path,
                                           std::string_view flag) {
  Ptr<BIO> bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  Ptr<X509> cert(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
  ERR_clear_error();
  if (cert == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        std::string(flag), " ", path, ": no certificate in PEM form in it"));
  }
  if (X509_cmp_current_time(X509_get0_notAfter(cert.get())) < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        std::string(flag), " ", path, ": the certificate has expired"));
  }
  return cert;
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeCredentials(
    const TlsFiles& files) {
  if (files.cert.empty()) return grpc::InsecureServerCredentials();
  XC_ASSIGN_OR_RETURN(std::string cert_pem, ReadFile(files.cert, "--tls-cert"));
  XC_ASSIGN_OR_RETURN(std::string key_pem, ReadFile(files.key, "--tls-key"));
  XC_ASSIGN_OR_RETURN(const Ptr<X509> cert,
                      ParseCertificate(cert_pem, files.cert, "--tls-cert"));
  Ptr<BIO> bio(
      BIO_new_mem_buf(key_pem.data(), static_cast<int>(key_pem.size())));
  // An empty passphrase rather than a question on the terminal.
  char no_passphrase[] = "";
  Ptr<EVP_PKEY> key(
      PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, no_passphrase));
  ERR_clear_error();
  if (key == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--tls-key ", files.key,
        ": no private key in PEM form (without passphrase) in it"));
  }
  const bool match = X509_check_private_key(cert.get(), key.get()) == 1;
  ERR_clear_error();
  if (!match) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--tls-key ", files.key, " is not the key of --tls-cert ", files.cert));
  }
  grpc::SslServerCredentialsOptions options(
      files.client_ca.empty()
          ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
          : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  if (!files.client_ca.empty()) {
    XC_ASSIGN_OR_RETURN(options.pem_root_certs,
                        ReadFile(files.client_ca, "--tls-client-ca"));
    XC_RETURN_IF_ERROR(ParseCertificate(options.pem_root_certs, files.client_ca,
                                        "--tls-client-ca")
                           .status());
  }
  options.pem_key_cert_pairs.push_back(
      {std::move(key_pem), std::move(cert_pem)});
  return grpc::SslServerCredentials(options);
}

}  // namespace xcache
