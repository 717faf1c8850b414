#include "server/grpc/credentials.h"

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>

#include "grpc/grpc.h"
#include "grpc/grpc_security.h"
#include "grpc/slice.h"
#include "server/grpc/status.h"

namespace xcache {
namespace {

std::string_view View(const grpc_slice& slice) {
  return {reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(slice)),
          GRPC_SLICE_LENGTH(slice)};
}

// gRPC's C++ credentials take no token check in plaintext and no new
// certificate once they are made; its C interface below them takes both.
class Credentials final : public grpc::ServerCredentials {
 public:
  Credentials(std::shared_ptr<const TlsIdentity> tls, AdmitCallFn admit)
      : tls_(std::move(tls)), admit_(std::move(admit)) {
    if (tls_ == nullptr) {
      credentials_ = grpc_insecure_server_credentials_create();
    } else {
      credentials_ = grpc_ssl_server_credentials_create_with_options(
          grpc_ssl_server_credentials_create_options_using_config_fetcher(
              tls_->files().client_ca.empty()
                  ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                  : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY,
              &FetchCertificate, this));
    }
    if (admit_) {
      grpc_server_credentials_set_auth_metadata_processor(
          credentials_, {&ProcessMetadata, nullptr, this});
    }
  }
  ~Credentials() override { grpc_server_credentials_release(credentials_); }

 private:
  int AddPortToServer(const std::string& address,
                      grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }
  // Only the constructor sets what gRPC's callers would set here.
  void SetAuthMetadataProcessor(
      const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

  // Called at the start and before each handshake.
  static grpc_ssl_certificate_config_reload_status FetchCertificate(
      void* user_data, grpc_ssl_server_certificate_config** config) {
    auto* self = static_cast<Credentials*>(user_data);
    const std::shared_ptr<const TlsPem> pem = self->tls_->pem();
    if (self->generation_.exchange(pem->generation) == pem->generation) {
      return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    }
    const grpc_ssl_pem_key_cert_pair pair = {pem->key.c_str(),
                                             pem->cert.c_str()};
    // gRPC wants authorities also where it asks for no client's certificate.
    *config = grpc_ssl_server_certificate_config_create(
        (pem->client_ca.empty() ? pem->cert : pem->client_ca).c_str(), &pair,
        1);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  static void ProcessMetadata(void* state, grpc_auth_context* context,
                              const grpc_metadata* metadata, size_t count,
                              grpc_process_auth_metadata_done_cb done,
                              void* user_data) {
    std::string_view path, authorization;
    bool has_authorization = false;
    for (size_t i = 0; i < count; ++i) {
      const std::string_view key = View(metadata[i].key);
      if (key == ":path") path = View(metadata[i].value);
      if (key == "authorization" && !has_authorization) {
        authorization = View(metadata[i].value);
        has_authorization = true;
      }
    }
    const grpc::Status status =
        ToGrpcStatus(static_cast<Credentials*>(state)->admit_(
            {path, has_authorization ? &authorization : nullptr, context}));
    done(user_data, nullptr, 0, nullptr, 0,
         static_cast<grpc_status_code>(status.error_code()),
         status.error_message().c_str());
  }

  const std::shared_ptr<const TlsIdentity> tls_;
  const AdmitCallFn admit_;
  grpc_server_credentials* credentials_ = nullptr;
  std::atomic<uint64_t> generation_{0};
};

}  // namespace

const void* ConnectionOf(grpc::CallbackServerContext& context) {
  // gRPC makes one such context for each connection.
  grpc_auth_context* const auth = grpc_call_auth_context(context.c_call());
  grpc_auth_context_release(auth);
  return auth;
}

std::shared_ptr<grpc::ServerCredentials> MakeCredentials(
    std::shared_ptr<const TlsIdentity> tls, AdmitCallFn admit) {
  return std::make_shared<Credentials>(std::move(tls), std::move(admit));
}

}  // namespace xcache
