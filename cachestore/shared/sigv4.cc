#include "cachestore/shared/sigv4.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>

#include "absl/strings/str_cat.h"

namespace xcache {
namespace {

constexpr std::string_view kAlgorithm = "AWS4-HMAC-SHA256";

std::string_view AsBytes(const Digest& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

Digest HmacSha256(std::string_view key, std::string_view text) {
  Digest digest;
  unsigned size = 0;
  // Fails for want of memory alone, as every digest of OpenSSL.
  if (HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
           reinterpret_cast<const unsigned char*>(text.data()), text.size(),
           digest.data(), &size) == nullptr) {
    std::abort();
  }
  return digest;
}

}  // namespace

std::string UriEncode(std::string_view text, bool encode_slash) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string encoded;
  for (const char c : text) {
    const bool is_plain = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                          (c >= '0' && c <= '9') || c == '-' || c == '.' ||
                          c == '_' || c == '~' || (c == '/' && !encode_slash);
    if (is_plain) {
      encoded.push_back(c);
    } else {
      const auto byte = static_cast<uint8_t>(c);
      encoded.push_back('%');
      encoded.push_back(kHex[byte >> 4]);
      encoded.push_back(kHex[byte & 15]);
    }
  }
  return encoded;
}

std::string CanonicalQuery(const NameValues& query) {
  NameValues encoded;
  for (const auto& [name, value] : query) {
    encoded.emplace_back(UriEncode(name, true), UriEncode(value, true));
  }
  std::sort(encoded.begin(), encoded.end());
  std::string text;
  for (const auto& [name, value] : encoded) {
    absl::StrAppend(&text, text.empty() ? "" : "&", name, "=", value);
  }
  return text;
}

std::string SigV4Time(int64_t unix_s) {
  const auto seconds = static_cast<time_t>(unix_s);
  struct tm utc {};
  gmtime_r(&seconds, &utc);
  char text[32];
  const size_t size = strftime(text, sizeof(text), "%Y%m%dT%H%M%SZ", &utc);
  return {text, size};
}

NameValues SignSigV4(const SigV4Request& request,
                     const Credentials& credentials) {
  const std::string time = SigV4Time(request.unix_s);
  const std::string date = time.substr(0, 8);
  const std::string payload = ToHex(request.payload_digest);
  NameValues added = {{"x-amz-content-sha256", payload}, {"x-amz-date", time}};
  if (!credentials.session_token.empty()) {
    added.emplace_back("x-amz-security-token", credentials.session_token);
  }

  NameValues headers = request.headers;
  headers.insert(headers.end(), added.begin(), added.end());
  std::sort(headers.begin(), headers.end());
  std::string header_lines, signed_names;
  for (const auto& [name, value] : headers) {
    absl::StrAppend(&header_lines, name, ":", value, "\n");
    absl::StrAppend(&signed_names, signed_names.empty() ? "" : ";", name);
  }
  const std::string canonical = absl::StrCat(
      request.method, "\n", request.path, "\n", CanonicalQuery(request.query),
      "\n", header_lines, "\n", signed_names, "\n", payload);

  const std::string scope = absl::StrCat(date, "/", request.region, "/",
                                         request.service, "/aws4_request");
  const std::string to_sign =
      absl::StrCat(std::string(kAlgorithm), "\n", time, "\n", scope, "\n",
                   ToHex(Sha256Of(canonical)));
  const Digest date_key =
      HmacSha256(absl::StrCat("AWS4", credentials.secret_key), date);
  const Digest region_key = HmacSha256(AsBytes(date_key), request.region);
  const Digest service_key = HmacSha256(AsBytes(region_key), request.service);
  const Digest key = HmacSha256(AsBytes(service_key), "aws4_request");
  added.emplace_back(
      "authorization",
      absl::StrCat(std::string(kAlgorithm),
                   " Credential=", credentials.access_key_id, "/", scope,
                   ",SignedHeaders=", signed_names,
                   ",Signature=", ToHex(HmacSha256(AsBytes(key), to_sign))));
  return added;
}

}  // namespace xcache
