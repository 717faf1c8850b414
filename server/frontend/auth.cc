#include "server/frontend/auth.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <optional>
#include <sstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/file.h"
#include "engine/base/log.h"
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

// What no token is: it begins a line of limits.
constexpr std::string_view kTenantWord = "tenant";
constexpr std::string_view kWeight = "weight";

// Beyond any machine, and far from overflow.
constexpr int64_t kMaxValue = int64_t{1} << 53;

absl::Status LineError(int number, std::string_view expected,
                       std::string_view found) {
  return absl::InvalidArgumentError(
      absl::StrCat("line ", number, ": expected ", std::string(expected),
                   ", found ", std::string(found)));
}

std::string KnownKeys() {
  std::string keys(kWeight);
  for (const TenantLimitDef& def : TenantLimitTable()) {
    absl::StrAppend(&keys, ", ", std::string(def.name));
  }
  return keys;
}

// A whole number; of bytes, one with a unit too.
std::optional<int64_t> ParseValue(std::string_view text, bool is_bytes) {
  int shift = 0;
  for (const auto& [unit, bits] : {std::pair<std::string_view, int>{"KiB", 10},
                                   {"MiB", 20},
                                   {"GiB", 30},
                                   {"TiB", 40}}) {
    if (!is_bytes || !text.ends_with(unit)) continue;
    text.remove_suffix(unit.size());
    shift = bits;
    break;
  }
  int64_t value = 0;
  const bool digits =
      !text.empty() && std::all_of(text.begin(), text.end(),
                                   [](char c) { return c >= '0' && c <= '9'; });
  if (!digits || !absl::SimpleAtoi({text.data(), text.size()}, &value) ||
      value < 1 || value > kMaxValue >> shift) {
    return std::nullopt;
  }
  return value << shift;
}

// What comes after `tenant NAME` in a line.
absl::StatusOr<TenantPolicy> ParsePolicy(int number, std::istringstream& words,
                                         const std::string& tenant) {
  TenantPolicy policy;
  std::vector<std::string> seen;
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    if (equals == word.npos) {
      // Not shown: it may be a token, out of its place.
      return LineError(number, "key=value", "a word without a '='");
    }
    const std::string key = word.substr(0, equals);
    const std::string text = word.substr(equals + 1);
    const auto def = std::find_if(
        TenantLimitTable().begin(), TenantLimitTable().end(),
        [&](const TenantLimitDef& limit) { return limit.name == key; });
    const bool is_weight = key == kWeight;
    if (!is_weight && def == TenantLimitTable().end()) {
      return LineError(number, absl::StrCat("one of ", KnownKeys()),
                       absl::StrCat("'", key, "'"));
    }
    if (std::find(seen.begin(), seen.end(), key) != seen.end()) {
      return LineError(number, "each key once",
                       absl::StrCat("'", key, "' twice"));
    }
    seen.push_back(key);
    const bool is_bytes = !is_weight && def->id == TenantLimit::kPageBytes;
    const std::optional<int64_t> value = ParseValue(text, is_bytes);
    if (!value.has_value() || (is_weight && *value > kMaxTenantWeight)) {
      return LineError(
          number,
          absl::StrCat(key, "= and a whole number from 1",
                       is_weight  ? absl::StrCat(" to ", kMaxTenantWeight)
                       : is_bytes ? " on, or one with KiB, MiB, GiB or TiB"
                                  : " on"),
          absl::StrCat("'", text, "'"));
    }
    if (is_weight) {
      policy.weight = *value;
    } else {
      policy.limits[static_cast<size_t>(def->id)] = *value;
    }
  }
  if (seen.empty()) {
    return LineError(number,
                     absl::StrCat("key=value after 'tenant ", tenant, "'"),
                     "nothing; and no token can be the word 'tenant'");
  }
  return policy;
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
  std::map<std::string, int> limits_at;  // lines, by tenant
  for (int number = 1; std::getline(in, line); ++number) {
    line.resize(std::min(line.size(), line.find('#')));
    std::istringstream words(line);
    Entry entry;
    std::string token, rest;
    if (!(words >> token)) continue;
    const bool is_policy = token == kTenantWord;
    if (!(words >> entry.tenant) || (!is_policy && (words >> rest))) {
      return absl::InvalidArgumentError(absl::StrCat(
          "line ", number,
          ": expected a token and a tenant, two words, or a tenant's limits: "
          "'tenant NAME key=value ...'"));
    }
    if (!IsTenantName(entry.tenant)) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": the tenant must be 1 to ",
                       kMaxTenantBytes, " of [A-Za-z0-9._-]"));
    }
    if (is_policy) {
      XC_ASSIGN_OR_RETURN(table->policies_[entry.tenant],
                          ParsePolicy(number, words, entry.tenant));
      const auto [first, is_new] = limits_at.emplace(entry.tenant, number);
      if (!is_new) {
        return LineError(number, "a tenant's limits in one line",
                         absl::StrCat("more of tenant '", entry.tenant,
                                      "', whose line is ", first->second));
      }
      continue;
    }
    entry.token_digest = Sha256Of(token);
    for (const Entry& other : table->entries_) {
      if (other.token_digest == entry.token_digest) {
        return absl::InvalidArgumentError(
            absl::StrCat("line ", number, ": this token is there already"));
      }
    }
    table->policies_.try_emplace(entry.tenant);
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

std::vector<std::string> TokenTable::without_token() const {
  std::vector<std::string> out;
  for (const auto& [tenant, policy] : policies_) {
    const bool has_token = std::any_of(entries_.begin(), entries_.end(),
                                       [&, &name = tenant](const Entry& entry) {
                                         return entry.tenant == name;
                                       });
    if (!has_token) out.push_back(tenant);
  }
  return out;
}

absl::StatusOr<std::unique_ptr<Authenticator>> Authenticator::Create(
    const std::string& token_file, TenantLedger* tenants) {
  std::unique_ptr<Authenticator> out(new Authenticator(token_file, tenants));
  XC_RETURN_IF_ERROR(out->Reload());
  return out;
}

absl::Status Authenticator::Reload() {
  if (path_.empty()) return absl::OkStatus();
  XC_ASSIGN_OR_RETURN(auto table, TokenTable::Load(path_));
  if (tenants_ != nullptr) tenants_->SetPolicies(table->policies());
  // Not an error: a tenant's last token must be gone at once.
  if (const auto idle = table->without_token(); !idle.empty()) {
    XC_LOG_WARN("tenants have limits and no token", "tenants={}",
                LogValue(absl::StrJoin(idle, ",")));
  }
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
