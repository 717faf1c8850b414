#include "cachestore/shared/s3_location.h"

#include <curl/curl.h>

#include <algorithm>
#include <memory>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

constexpr size_t kMaxKeyBytes = 512;

bool IsLowerOrDigit(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

bool IsKeyCharacter(char c) {
  constexpr std::string_view kOthers = "!-_.*'()/=+:@,";
  return IsLowerOrDigit(c) || (c >= 'A' && c <= 'Z') ||
         kOthers.find(c) != kOthers.npos;
}

// What was found, fit for a message.
std::string Shown(std::string_view text) {
  constexpr size_t kMost = 100;
  const std::string start(text.substr(0, kMost));
  return absl::StrCat("\"", absl::CHexEscape(start), "\"",
                      text.size() > kMost ? "..." : "");
}

// The rules of S3 for names of buckets.
bool IsBucketName(std::string_view name) {
  return name.size() >= 3 && name.size() <= 63 &&
         IsLowerOrDigit(name.front()) && IsLowerOrDigit(name.back()) &&
         name.find("..") == name.npos &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return IsLowerOrDigit(c) || c == '-' || c == '.';
         });
}

struct UrlCleanup {
  void operator()(CURLU* url) const { curl_url_cleanup(url); }
};

// Empty where the URL has no such part.
std::string UrlPart(CURLU* url, CURLUPart part) {
  char* text = nullptr;
  if (curl_url_get(url, part, &text, 0) != CURLUE_OK) return "";
  std::string copy(text);
  curl_free(text);
  return copy;
}

bool IsHostCharacter(char c) {
  constexpr std::string_view kOthers = "-_.:[]";
  return IsLowerOrDigit(c) || (c >= 'A' && c <= 'Z') ||
         kOthers.find(c) != kOthers.npos;
}

}  // namespace

absl::Status CheckObjectKey(std::string_view key) {
  const auto refused = [&key](const char* what) {
    return absl::InvalidArgumentError(
        absl::StrCat("object key: expected ", what, ", found ", Shown(key)));
  };
  if (key.empty() || key.size() > kMaxKeyBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("object key: expected 1 to ", kMaxKeyBytes,
                     " bytes, found ", key.size()));
  }
  if (!std::all_of(key.begin(), key.end(), IsKeyCharacter)) {
    return refused("letters, digits and !-_.*'()/=+:@,");
  }
  for (size_t at = 0; at <= key.size();) {
    const size_t end = std::min(key.find('/', at), key.size());
    const std::string_view segment = key.substr(at, end - at);
    if (segment.empty() || segment == "." || segment == "..") {
      return refused("no segment that is empty, \".\" or \"..\"");
    }
    at = end + 1;
  }
  return absl::OkStatus();
}

absl::Status CheckRegion(std::string_view region) {
  if (region.empty() || region.size() > 63 ||
      !std::all_of(region.begin(), region.end(),
                   [](char c) { return IsLowerOrDigit(c) || c == '-'; })) {
    return absl::InvalidArgumentError(absl::StrCat(
        "region: expected 1 to 63 lower-case letters, digits and hyphens, as "
        "\"us-east-1\", found ",
        Shown(region)));
  }
  return absl::OkStatus();
}

absl::StatusOr<S3Location> ParseS3Location(std::string_view text) {
  constexpr std::string_view kScheme = "s3://";
  if (!text.starts_with(kScheme)) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected s3://bucket/prefix, found ", Shown(text)));
  }
  std::string_view rest = text.substr(kScheme.size());
  const size_t slash = rest.find('/');
  S3Location location;
  location.bucket = rest.substr(0, slash);
  if (!IsBucketName(location.bucket)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expected s3://bucket/prefix with a bucket's name of 3 to 63 "
        "lower-case letters, digits, hyphens and dots, found ",
        Shown(location.bucket)));
  }
  std::string_view prefix =
      slash == rest.npos ? std::string_view() : rest.substr(slash + 1);
  if (prefix.ends_with('/')) prefix.remove_suffix(1);
  if (prefix.empty()) {
    if (slash != rest.npos && rest.size() > slash + 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("expected s3://bucket/prefix, found ", Shown(text)));
    }
    return location;
  }
  // Half of what S3 has room for; a key's own half follows.
  XC_RETURN_IF_ERROR(CheckObjectKey(prefix));
  location.prefix = absl::StrCat(std::string(prefix), "/");
  return location;
}

absl::StatusOr<HttpEndpoint> ParseHttpEndpoint(std::string_view text) {
  const auto refused = [](const char* found) {
    return absl::InvalidArgumentError(absl::StrCat(
        "endpoint: expected http://host:port or https://host:port and nothing "
        "more, found ",
        found));
  };
  const bool is_plain = std::all_of(
      text.begin(), text.end(), [](char c) { return c > ' ' && c < '\x7f'; });
  if (text.empty() || text.size() > 512 || !is_plain) {
    return refused(text.empty() ? "nothing" : "something that is no URL");
  }
  const std::unique_ptr<CURLU, UrlCleanup> url(curl_url());
  if (url == nullptr) return absl::ResourceExhaustedError("no memory");
  if (curl_url_set(url.get(), CURLUPART_URL, std::string(text).c_str(), 0) !=
      CURLUE_OK) {
    return refused("something that is no URL");
  }
  const std::string scheme = UrlPart(url.get(), CURLUPART_SCHEME);
  if (scheme != "http" && scheme != "https") return refused("another scheme");
  if (text.find('@') != text.npos) {
    return refused("a user or a password: credentials are given elsewhere");
  }
  // curl takes "http:///host" and "http:/host" for "http://host", and decodes a
  // name.
  if (text.find("://") == text.npos || text.find(":///") != text.npos) {
    return refused("no host");
  }
  if (text.find('%') != text.npos && text.find('[') == text.npos) {
    return refused("a host's name with escaped characters");
  }
  const std::string path = UrlPart(url.get(), CURLUPART_PATH);
  if ((!path.empty() && path != "/") || text.find('?') != text.npos ||
      text.find('#') != text.npos) {
    return refused("a path, a query or a fragment");
  }
  HttpEndpoint endpoint;
  endpoint.tls = scheme == "https";
  endpoint.host = UrlPart(url.get(), CURLUPART_HOST);
  if (endpoint.host.empty() ||
      !std::all_of(endpoint.host.begin(), endpoint.host.end(),
                   IsHostCharacter)) {
    return refused(
        "a host's name with other characters than letters, digits, "
        "hyphens and dots");
  }
  const std::string port = UrlPart(url.get(), CURLUPART_PORT);
  if (port == "0") return refused("port 0");
  if (!port.empty() && port != (endpoint.tls ? "443" : "80")) {
    absl::StrAppend(&endpoint.host, ":", port);
  }
  return endpoint;
}

}  // namespace xcache
