#include "server/shared_stores.h"

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cachestore/shared/credentials.h"
#include "cachestore/shared/http_client.h"
#include "cachestore/shared/s3_object_store.h"
#include "cachestore/shared/web_identity.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "server/config.h"

namespace xcache {
namespace {

// Pages are got in parallel; a replica commits few turns at once.
constexpr int kPageConnections = 16;
constexpr int kSessionConnections = 8;
constexpr char kProfile[] = "default";

// What the operator named, else what the environment gives: keys, or the token
// that a platform puts there.
absl::StatusOr<std::unique_ptr<CredentialsProvider>> FindCredentials(
    const SharedConfig& config, const std::shared_ptr<HttpClient>& http) {
  if (!config.credentials_file.empty()) {
    auto provider = CredentialsFromFile(config.credentials_file, kProfile);
    if (provider.ok()) return provider;
    return absl::Status(
        provider.status().code(),
        absl::StrCat("--shared-credentials-file ", config.credentials_file,
                     ": ", std::string(provider.status().message())));
  }
  auto fixed = CredentialsFromEnvironment();
  if (fixed.ok()) return FixedCredentials(*std::move(fixed));
  if (!absl::IsNotFound(fixed.status())) return fixed.status();
  auto identity = WebIdentityFromEnvironment(config.region);
  if (identity.ok()) return WebIdentityCredentials(*std::move(identity), http);
  if (!absl::IsNotFound(identity.status())) return identity.status();
  return absl::PermissionDeniedError(
      "--shared: expected credentials in --shared-credentials-file, or in "
      "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by "
      "AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, found none");
}

absl::StatusOr<std::shared_ptr<ObjectStore>> Open(const SharedConfig& config,
                                                  int connections,
                                                  uint64_t bytes_per_s) {
  HttpOptions http_options;
  http_options.max_connections = connections;
  http_options.bytes_per_s = static_cast<int64_t>(bytes_per_s);
  http_options.ca_file = config.ca_file;
  XC_ASSIGN_OR_RETURN(const std::shared_ptr<HttpClient> http,
                      HttpClient::Create(http_options));
  XC_ASSIGN_OR_RETURN(auto credentials, FindCredentials(config, http));
  S3Options options;
  options.location = config.location;
  options.endpoint = config.endpoint;
  options.region = config.region;
  options.server_side_encryption = config.encryption;
  options.kms_key_id = config.kms_key_id;
  XC_ASSIGN_OR_RETURN(std::unique_ptr<ObjectStore> store,
                      OpenS3ObjectStore(options, http, std::move(credentials)));
  return std::shared_ptr<ObjectStore>(std::move(store));
}

// The host of "[::1]:9000" or "name:9000".
std::string HostOf(const std::string& host) {
  if (host.starts_with("[")) return host.substr(1, host.find(']') - 1);
  return host.substr(0, host.rfind(':'));
}

}  // namespace

absl::Status CheckSharedCredentials(const std::string& path) {
  return CredentialsFromFile(path, kProfile).status();
}

absl::StatusOr<SharedStores> OpenSharedStores(const SharedConfig& config) {
  SharedStores stores;
  if (!config.enabled()) return stores;
  if (!config.endpoint.tls && !IsLoopback(HostOf(config.endpoint.host))) {
    XC_LOG_WARN("shared store without TLS", "endpoint={}",
                LogValue(config.endpoint.Url()));
  }
  XC_ASSIGN_OR_RETURN(stores.pages,
                      Open(config, kPageConnections, config.bytes_per_s));
  XC_ASSIGN_OR_RETURN(stores.sessions, Open(config, kSessionConnections, 0));
  return stores;
}

}  // namespace xcache
