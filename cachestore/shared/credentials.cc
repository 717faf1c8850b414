#include "cachestore/shared/credentials.h"

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/base/ascii.h"
#include "engine/base/file.h"
#include "engine/base/log.h"
#include "engine/base/mutex.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 20;

bool IsVisible(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return c > ' ' && c < '\x7f'; });
}

class Fixed : public CredentialsProvider {
 public:
  explicit Fixed(Credentials credentials)
      : credentials_(std::move(credentials)) {}
  void Get(std::chrono::steady_clock::time_point, Done done) override {
    done(credentials_);
  }

 private:
  const Credentials credentials_;
};

absl::StatusOr<Credentials> ReadFile(const std::string& path,
                                     const std::string& profile) {
  XC_ASSIGN_OR_RETURN(const std::string text,
                      ReadSecretFile(path, kMaxFileBytes));
  auto credentials = ParseCredentialsFile(text, profile);
  if (credentials.ok()) return credentials;
  return absl::Status(
      credentials.status().code(),
      absl::StrCat(path, ": ", std::string(credentials.status().message())));
}

class FromFile : public CredentialsProvider {
 public:
  FromFile(std::string path, std::string profile)
      : path_(std::move(path)), profile_(std::move(profile)) {}

  absl::Status Start() {
    MutexLock lock(mu_);
    const auto stamp = StampOf(path_);
    XC_ASSIGN_OR_RETURN(credentials_, ReadFile(path_, profile_));
    if (stamp.ok()) stamp_ = *stamp;
    return absl::OkStatus();
  }

  void Get(std::chrono::steady_clock::time_point, Done done) override {
    Credentials credentials;
    {
      MutexLock lock(mu_);
      ReadAgainLocked();
      credentials = credentials_;
    }
    done(std::move(credentials));
  }

 private:
  void ReadAgainLocked() XC_REQUIRES(mu_) {
    // The stamp is of before the reading: a change between the two is seen at
    // the next call.
    std::optional<FileStamp> stamp;
    if (const auto now = StampOf(path_); now.ok()) stamp = *now;
    if (stamp == stamp_) return;
    stamp_ = stamp;
    auto read = ReadFile(path_, profile_);
    if (!read.ok()) {
      XC_LOG_WARN(
          "credentials file is no longer good; what it said stays in "
          "force",
          "error={}", LogValue(std::string(read.status().message())));
      return;
    }
    XC_LOG_INFO("credentials file was read again", "path={}", LogValue(path_));
    credentials_ = *std::move(read);
  }

  const std::string path_;
  const std::string profile_;
  Mutex mu_;
  Credentials credentials_ XC_GUARDED_BY(mu_);
  std::optional<FileStamp> stamp_ XC_GUARDED_BY(mu_);
};

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

absl::Status CheckCredentials(const Credentials& credentials) {
  const auto refused = [](const char* which) {
    return absl::InvalidArgumentError(
        absl::StrCat(which, ": expected visible ASCII characters, found ",
                     "none, or others"));
  };
  const auto& [id, secret, token] = credentials;
  // The id stands between slashes in what is signed.
  if (id.empty() || !IsVisible(id) || id.find('/') != id.npos ||
      id.find(',') != id.npos) {
    return refused("access key id");
  }
  if (secret.empty() || !IsVisible(secret)) return refused("secret key");
  if (!IsVisible(token)) return refused("session token");
  return absl::OkStatus();
}

std::unique_ptr<CredentialsProvider> FixedCredentials(Credentials credentials) {
  return std::make_unique<Fixed>(std::move(credentials));
}

absl::StatusOr<Credentials> CredentialsFromEnvironment() {
  Credentials credentials{.access_key_id = Variable("AWS_ACCESS_KEY_ID"),
                          .secret_key = Variable("AWS_SECRET_ACCESS_KEY"),
                          .session_token = Variable("AWS_SESSION_TOKEN")};
  if (credentials.access_key_id.empty() && credentials.secret_key.empty()) {
    return absl::NotFoundError(
        "expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the "
        "environment, found neither");
  }
  if (const absl::Status status = CheckCredentials(credentials); !status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
                     "AWS_SESSION_TOKEN in the environment: ",
                     std::string(status.message())));
  }
  return credentials;
}

absl::StatusOr<Credentials> ParseCredentialsFile(std::string_view text,
                                                 std::string_view profile) {
  Credentials credentials;
  bool in_profile = false, found = false;
  int line_number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = Stripped(text.substr(at, end - at));
    at = end + 1;
    ++line_number;
    if (line.empty() || line.front() == '#' || line.front() == ';') continue;
    const auto refused = [line_number](const char* expected) {
      return absl::InvalidArgumentError(absl::StrCat(
          "line ", line_number, ": expected ", expected, ", found another"));
    };
    if (line.front() == '[') {
      if (line.back() != ']') return refused("[profile]");
      in_profile = Stripped(line.substr(1, line.size() - 2)) == profile;
      found |= in_profile;
      continue;
    }
    const size_t equals = line.find('=');
    if (equals == line.npos) return refused("[profile] or name = value");
    if (!in_profile) continue;
    const std::string name =
        absl::AsciiStrToLower(std::string(Stripped(line.substr(0, equals))));
    const std::string_view value = Stripped(line.substr(equals + 1));
    if (name == "aws_access_key_id") credentials.access_key_id = value;
    if (name == "aws_secret_access_key") credentials.secret_key = value;
    if (name == "aws_session_token") credentials.session_token = value;
  }
  if (!found) {
    return absl::NotFoundError(absl::StrCat(
        "expected a profile [", std::string(profile), "], found none"));
  }
  if (const absl::Status status = CheckCredentials(credentials); !status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("profile [", std::string(profile),
                     "]: ", std::string(status.message())));
  }
  return credentials;
}

absl::StatusOr<std::unique_ptr<CredentialsProvider>> CredentialsFromFile(
    std::string path, std::string profile) {
  auto provider =
      std::make_unique<FromFile>(std::move(path), std::move(profile));
  XC_RETURN_IF_ERROR(provider->Start());
  return provider;
}

}  // namespace xcache
