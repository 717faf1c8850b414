// Who is calling: bearer tokens from a file, each naming a tenant, and what the
// tenants may use.
#ifndef XCACHE_SERVER_FRONTEND_AUTH_H_
#define XCACHE_SERVER_FRONTEND_AUTH_H_

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/mutex.h"
#include "engine/base/sha256.h"
#include "server/core/tenants/tenant_ledger.h"

namespace xcache {

// The tenant of everybody where there is no token file.
inline constexpr std::string_view kDefaultTenant = "default";

// 1 to 64 of [A-Za-z0-9._-].
bool IsTenantName(std::string_view name);

// A token file: lines `token tenant`, at most one line `tenant NAME key=value
// ...` for each of the tenants, comments from # on, empty lines; a byte order
// mark before the first is skipped.
class TokenTable {
 public:
  // INVALID_ARGUMENT: a line that is none of those (named by its number, never
  // with its token), a token twice, a tenant's limits twice, or no token at
  // all.
  static absl::StatusOr<std::shared_ptr<const TokenTable>> Parse(
      std::string_view text);
  // Parse of a file, which must not be readable by everybody
  // (PERMISSION_DENIED).
  static absl::StatusOr<std::shared_ptr<const TokenTable>> Load(
      const std::string& path);

  // The token's tenant, or nullptr. Takes the same time whatever the token.
  const std::string* Find(std::string_view token) const;
  size_t size() const { return entries_.size(); }
  // Of every tenant that the file names.
  const TenantPolicies& policies() const { return policies_; }
  // Tenants that have a policy and no token.
  std::vector<std::string> without_token() const;

 private:
  struct Entry {
    Digest token_digest{};
    std::string tenant;
  };
  std::vector<Entry> entries_;
  TenantPolicies policies_;
};

// Thread-safe.
class Authenticator {
 public:
  // An empty path: everybody is kDefaultTenant. `tenants`, which may be null
  // and must outlive this, is given the file's policies, now and at each
  // reload.
  static absl::StatusOr<std::unique_ptr<Authenticator>> Create(
      const std::string& token_file, TenantLedger* tenants = nullptr);

  // The tenant that the value of the "authorization" header names; nullptr
  // where there was no header. UNAUTHENTICATED.
  absl::StatusOr<std::string> Authenticate(
      const std::string_view* authorization) const XC_EXCLUDES(mu_);

  // Reads the file again. Where that fails the tokens stay as they were.
  absl::Status Reload() XC_EXCLUDES(mu_);

 private:
  Authenticator(std::string path, TenantLedger* tenants)
      : path_(std::move(path)), tenants_(tenants) {}

  const std::string path_;
  TenantLedger* const tenants_;
  mutable Mutex mu_;
  std::shared_ptr<const TokenTable> table_ XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_AUTH_H_
