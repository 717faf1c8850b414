// Credentials for a token that the platform gives: STS's
// AssumeRoleWithWebIdentity, as pods of Kubernetes use it.
#ifndef XCACHE_CACHESTORE_SHARED_WEB_IDENTITY_H_
#define XCACHE_CACHESTORE_SHARED_WEB_IDENTITY_H_

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cachestore/shared/credentials.h"
#include "cachestore/shared/http_client.h"
#include "cachestore/shared/s3_location.h"

namespace xcache {

struct WebIdentityOptions {
  std::string token_file{};  // read at each refresh: the platform replaces it
  std::string role_arn{};
  std::string session_name = "xcache";
  HttpEndpoint endpoint{};  // of STS
  std::chrono::milliseconds timeout{10000};
  // They are refreshed when less than a fifth of their life, or this, is left:
  // beside the calls, which go on with those in force.
  std::chrono::seconds refresh_before{300};
};

// INVALID_ARGUMENT: no role, or a name that is none. The token file is read
// when credentials are asked for: it may come later than we do.
absl::StatusOr<std::unique_ptr<CredentialsProvider>> WebIdentityCredentials(
    WebIdentityOptions options, std::shared_ptr<HttpClient> http);

// From AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN, AWS_ROLE_SESSION_NAME and
// AWS_ENDPOINT_URL_STS. NOT_FOUND: neither of the first two is set;
// INVALID_ARGUMENT: only one, or the endpoint.
absl::StatusOr<WebIdentityOptions> WebIdentityFromEnvironment(
    const std::string& region);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_WEB_IDENTITY_H_
