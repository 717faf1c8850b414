#include "server/shared_config.h"

#include <cstdlib>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/config.h"

namespace xcache {
namespace {

// Less would have replicas put their pages again all the time.
constexpr std::chrono::seconds kLeastPageLife(3600);

// Platforms say it so beside the credentials that they give.
std::string RegionOfEnvironment() {
  for (const char* name : {"AWS_REGION", "AWS_DEFAULT_REGION"}) {
    const char* value = std::getenv(name);
    if (value != nullptr && *value != '\0') return value;
  }
  return "us-east-1";
}

// "none", "AES256", "aws:kms", "aws:kms:KEY". False: another.
bool ReadEncryption(const std::string& text, SharedConfig& config) {
  constexpr std::string_view kKms = "aws:kms";
  if (text.empty() || text == "none") return true;
  if (text == "AES256" || text == kKms) {
    config.encryption = text;
    return true;
  }
  const size_t at = kKms.size() + 1;
  if (!text.starts_with(kKms) || text.size() <= at || text[at - 1] != ':') {
    return false;
  }
  for (const char c : text) {
    if (c <= ' ' || c > '~') return false;
  }
  config.encryption = kKms;
  config.kms_key_id = text.substr(at);
  return true;
}

}  // namespace

absl::StatusOr<SharedConfig> ReadSharedConfig(
    const SharedFlags& flags, const std::vector<std::string>& given) {
  SharedConfig config;
  if (flags.location.empty() || flags.location == "none") {
    if (given.empty()) return config;
    return absl::InvalidArgumentError(
        absl::StrCat(given.front(),
                     " needs --shared s3://bucket/prefix: without it there is "
                     "no shared tier"));
  }
  auto location = ParseS3Location(flags.location);
  if (!location.ok()) {
    return FlagError("--shared", "s3://bucket or s3://bucket/prefix",
                     flags.location);
  }
  config.location = *std::move(location);
  if (!flags.endpoint.empty()) {
    auto endpoint = ParseHttpEndpoint(flags.endpoint);
    // It may hold a password: its own message does not.
    if (!endpoint.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--shared-endpoint: ", std::string(endpoint.status().message())));
    }
    config.endpoint = *std::move(endpoint);
  }
  config.region = flags.region.empty() ? RegionOfEnvironment() : flags.region;
  if (!CheckRegion(config.region).ok()) {
    return FlagError("--shared-region", "a region's name like eu-central-1",
                     config.region);
  }
  config.ca_file = flags.ca_file;
  config.credentials_file = flags.credentials_file;
  const auto bytes_per_s = ParseBytes(flags.bytes_per_s);
  if (!bytes_per_s.ok()) {
    return FlagError("--shared-bytes-per-s", "a size like 512MiB or 4GiB",
                     flags.bytes_per_s);
  }
  config.bytes_per_s = *bytes_per_s;
  if (flags.policy != "strict" && flags.policy != "prefer") {
    return FlagError("--shared-policy", "strict or prefer", flags.policy);
  }
  config.policy =
      flags.policy == "prefer" ? SharedPolicy::kPrefer : SharedPolicy::kStrict;
  const auto page_life = ParseDuration(flags.page_life);
  if (!page_life.ok() ||
      (page_life->count() > 0 && *page_life < kLeastPageLife)) {
    return FlagError("--shared-page-life",
                     "a duration from 1h on like 12h or 7d, or 0",
                     flags.page_life);
  }
  config.page_life = *page_life;
  if (!ReadEncryption(flags.encryption, config)) {
    return FlagError("--shared-encryption",
                     "none, AES256, aws:kms or aws:kms:KEY", flags.encryption);
  }
  return config;
}

}  // namespace xcache
