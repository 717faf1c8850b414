#include "server/frontend/auth.h"

#include <algorithm>
#include <cctype>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

// Far above any token in use; a file of that size is not a token file.
constexpr size_t kMaxFileBytes = size_t{16} << 20;
constexpr size_t kMaxTenantBytes = 64;

// 1 where equal, else 0, reading every byte of both.
unsigned EqualDigests(const Digest& a, const Digest& b) {
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference |= static_cast<unsigned>(a[i] ^ b[i]);
  }
  return (difference - 1) >> 31;
}

}  // namespace

bool IsTenantName(std::string_view name) {
  return !name.empty() && name.size() <= kMaxTenantBytes &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
                  c == '.' || c == '_' || c == '-';
         });
}

absl::StatusOr<std::shared_ptr<const TokenTable>> TokenTable::Parse(
    std::string_view text) {
  // What some editors put before UTF-8; it is no part of the first token.
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (text.substr(0, kByteOrderMark.size()) == kByteOrderMark) {
    text.remove_prefix(kByteOrderMark.size());
  }
  auto table = std::make_shared<TokenTable>();
  std::istringstream in{std::string(text)};
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    line.resize(std::min(line.size(), line.find('#')));
    std::istringstream words(line);
    Entry entry;
    std::string token, rest;
    if (!(words >> token)) continue;
    if (!(words >> entry.tenant) || (words >> rest)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "line ", number, ": expected a token and a tenant, two words"));
    }
    if (!IsTenantName(entry.tenant)) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": the tenant must be 1 to ",
                       kMaxTenantBytes, " of [A-Za-z0-9._-]"));
    }
    entry.token_digest = Sha256Of(token);
    for (const Entry& other : table->entries_) {
      if (other.token_digest == entry.token_digest) {
        return absl::InvalidArgumentError(
            absl::StrCat("line ", number, ": this token is there already"));
      }
    }
    table->entries_.push_back(std::move(entry));
  }
  if (table->entries_.empty()) {
    return absl::InvalidArgumentError("no token in it: nobody could call");
  }
  return std::shared_ptr<const TokenTable>(std::move(table));
}

absl::StatusOr<std::shared_ptr<const TokenTable>> TokenTable::Load(
    const std::string& path) {
  const auto text = ReadSecretFile(path, kMaxFileBytes);
  if (!text.ok()) {
    return absl::Status(text.status().code(),
                        absl::StrCat("token file ", text.status().message()));
  }
  auto table = Parse(*text);
  if (!table.ok()) {
    return absl::Status(
        table.status().code(),
        absl::StrCat("token file ", path, ": ", table.status().message()));
  }
  return table;
}

const std::string* TokenTable::Find(std::string_view token) const {
  const Digest digest = Sha256Of(token);
  const std::string* found = nullptr;
  for (const Entry& entry : entries_) {
    if (EqualDigests(entry.token_digest, digest) != 0) found = &entry.tenant;
  }
  return found;
}

absl::StatusOr<std::unique_ptr<Authenticator>> Authenticator::Create(
    const std::string& token_file) {
  std::unique_ptr<Authenticator> out(new Authenticator(token_file));
  XC_RETURN_IF_ERROR(out->Reload());
  return out;
}

absl::Status Authenticator::Reload() {
  if (path_.empty()) return absl::OkStatus();
  XC_ASSIGN_OR_RETURN(auto table, TokenTable::Load(path_));
  MutexLock lock(mu_);
  table_ = std::move(table);
  return absl::OkStatus();
}

absl::StatusOr<std::string> Authenticator::Authenticate(
    const std::string_view* authorization) const {
  if (path_.empty()) return std::string(kDefaultTenant);
  if (authorization == nullptr) {
    return absl::UnauthenticatedError(
        "this server needs a token: send \"authorization: Bearer <token>\"");
  }
  // RFC 7235: the scheme's case does not matter.
  static constexpr char kScheme[] = "bearer ";
  constexpr size_t kSchemeBytes = sizeof(kScheme) - 1;
  if (authorization->size() <= kSchemeBytes ||
      !std::equal(kScheme, kScheme + kSchemeBytes, authorization->begin(),
                  [](char a, char b) {
                    return a == std::tolower(static_cast<unsigned char>(b));
                  })) {
    return absl::UnauthenticatedError(
        "the authorization header is not \"Bearer <token>\"");
  }
  std::shared_ptr<const TokenTable> table;
  {
    MutexLock lock(mu_);
    table = table_;
  }
  const std::string* tenant = table->Find(authorization->substr(kSchemeBytes));
  if (tenant == nullptr) return absl::UnauthenticatedError("unknown token");
  return *tenant;
}

}  // namespace xcache
