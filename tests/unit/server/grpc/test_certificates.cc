#include "tests/unit/server/grpc/test_certificates.h"

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "gtest/gtest.h"

namespace xcache::testing {
namespace {

struct Issued {
  X509* cert = nullptr;
  EVP_PKEY* key = nullptr;
};

void AddExtension(X509* cert, X509* issuer, int nid, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, cert, nullptr, nullptr, 0);
  X509_EXTENSION* extension =
      X509V3_EXT_conf_nid(nullptr, &context, nid, value);
  X509_add_ext(cert, extension, -1);
  X509_EXTENSION_free(extension);
}

// Signed by `issuer`, or by itself where that is null.
Issued Issue(const char* name, const Issued* issuer, long valid_seconds) {
  static long serial = 1;
  Issued out;
  out.key = EVP_EC_gen("P-256");
  out.cert = X509_new();
  X509_set_version(out.cert, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(out.cert), serial++);
  X509_gmtime_adj(X509_getm_notBefore(out.cert), -7200);
  X509_gmtime_adj(X509_getm_notAfter(out.cert), valid_seconds);
  X509_set_pubkey(out.cert, out.key);
  X509_NAME* subject = X509_get_subject_name(out.cert);
  X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name), -1,
                             -1, 0);
  X509* signer = issuer == nullptr ? out.cert : issuer->cert;
  X509_set_issuer_name(out.cert, X509_get_subject_name(signer));
  if (issuer == nullptr) {
    AddExtension(out.cert, signer, NID_basic_constraints, "critical,CA:TRUE");
  } else {
    AddExtension(out.cert, signer, NID_subject_alt_name,
                 "DNS:localhost,IP:127.0.0.1");
  }
  X509_sign(out.cert, issuer == nullptr ? out.key : issuer->key, EVP_sha256());
  return out;
}

template <typename Write>
std::string Pem(Write write) {
  BIO* bio = BIO_new(BIO_s_mem());
  write(bio);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  std::string out(data, static_cast<size_t>(size));
  BIO_free(bio);
  return out;
}

std::string CertPem(const Issued& issued) {
  return Pem([&](BIO* bio) { PEM_write_bio_X509(bio, issued.cert); });
}

std::string KeyPem(const Issued& issued) {
  return Pem([&](BIO* bio) {
    PEM_write_bio_PrivateKey(bio, issued.key, nullptr, nullptr, 0, nullptr,
                             nullptr);
  });
}

void Release(const Issued& issued) {
  X509_free(issued.cert);
  EVP_PKEY_free(issued.key);
}

}  // namespace

TestCertificates MakeTestCertificates() {
  const Issued ca = Issue("xcache test authority", nullptr, 86400);
  const Issued server = Issue("localhost", &ca, 86400);
  const Issued client = Issue("client", &ca, 86400);
  const Issued expired = Issue("localhost", &ca, -3600);
  TestCertificates out{CertPem(ca),     CertPem(server), KeyPem(server),
                       CertPem(client), KeyPem(client),  CertPem(expired),
                       KeyPem(expired)};
  for (const Issued& issued : {ca, server, client, expired}) Release(issued);
  return out;
}

std::string WriteTestFile(const std::string& name, const std::string& text) {
  const std::string path =
      ::testing::TempDir() + "/" + std::to_string(getpid()) + "." + name;
  unlink(path.c_str());
  std::ofstream(path, std::ios::binary) << text;
  chmod(path.c_str(), 0600);
  return path;
}

}  // namespace xcache::testing
