#include "server/frontend/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/status_macros.h"

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

// `read`: ReadSmallFile or ReadSecretFile.
absl::StatusOr<std::string> ReadFlagFile(
    absl::StatusOr<std::string> (*read)(const std::string&, size_t),
    const std::string& path, std::string_view flag) {
  auto text = read(path, kMaxPemBytes);
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

absl::StatusOr<TlsPem> ReadPem(const TlsFiles& files) {
  TlsPem out;
  XC_ASSIGN_OR_RETURN(out.cert,
                      ReadFlagFile(ReadSmallFile, files.cert, "--tls-cert"));
  XC_ASSIGN_OR_RETURN(const Ptr<X509> cert,
                      ParseCertificate(out.cert, files.cert, "--tls-cert"));
  XC_ASSIGN_OR_RETURN(out.key,
                      ReadFlagFile(ReadSecretFile, files.key, "--tls-key"));
  Ptr<BIO> bio(
      BIO_new_mem_buf(out.key.data(), static_cast<int>(out.key.size())));
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
  if (!files.client_ca.empty()) {
    XC_ASSIGN_OR_RETURN(
        out.client_ca,
        ReadFlagFile(ReadSmallFile, files.client_ca, "--tls-client-ca"));
    XC_RETURN_IF_ERROR(
        ParseCertificate(out.client_ca, files.client_ca, "--tls-client-ca")
            .status());
  }
  return out;
}

}  // namespace

absl::StatusOr<std::shared_ptr<TlsIdentity>> TlsIdentity::Load(
    const TlsFiles& files) {
  std::shared_ptr<TlsIdentity> out(new TlsIdentity(files));
  XC_RETURN_IF_ERROR(out->Reload());
  return out;
}

absl::Status TlsIdentity::Reload() {
  XC_ASSIGN_OR_RETURN(TlsPem pem, ReadPem(files_));
  MutexLock lock(mu_);
  pem.generation = pem_ == nullptr ? 1 : pem_->generation + 1;
  pem_ = std::make_shared<const TlsPem>(std::move(pem));
  return absl::OkStatus();
}

std::shared_ptr<const TlsPem> TlsIdentity::pem() const {
  MutexLock lock(mu_);
  return pem_;
}

}  // namespace xcache
