#include "cachestore/shared/xml_answers.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <pugixml.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

bool IsName(std::string_view text) {
  return !text.empty() && text.size() <= 64 &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                  c == '.' || c == '_' || c == '-';
         });
}

absl::Status Unexpected(const char* expected, const std::string& found) {
  return absl::UnavailableError(
      absl::StrCat("expected ", expected, " in XML, found ", found));
}

// The root element, which must have the name.
absl::StatusOr<pugi::xml_node> Root(pugi::xml_document& document,
                                    std::string_view xml, const char* name) {
  // pugixml knows no entities but XML's own five: nothing expands.
  const auto result = document.load_buffer(
      xml.data(), xml.size(), pugi::parse_default, pugi::encoding_utf8);
  if (!result) {
    return Unexpected(name, absl::StrCat(xml.size(), " bytes that are none: ",
                                         result.description()));
  }
  const pugi::xml_node root = document.document_element();
  if (std::strcmp(root.name(), name) != 0) {
    return Unexpected(name, IsName(root.name())
                                ? absl::StrCat("<", root.name(), ">")
                                : "another element");
  }
  return root;
}

std::optional<uint64_t> ParseSize(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    return std::nullopt;
  }
  return value;
}

}  // namespace

std::optional<int64_t> ParseXmlTime(const std::string& text) {
  absl::Time time;
  // No year of five digits, no "infinite-past": what an object can have.
  if (text.size() < 20 || text.size() > 40 || text[4] != '-' ||
      !absl::ParseTime(absl::RFC3339_full, text, &time, nullptr)) {
    return std::nullopt;
  }
  return absl::ToUnixMillis(time);
}

std::string UnquoteEtag(std::string_view text) {
  if (text.size() >= 2 && text.front() == '"' && text.back() == '"') {
    text = text.substr(1, text.size() - 2);
  }
  const bool is_good = !text.empty() && text.size() <= 128 &&
                       std::all_of(text.begin(), text.end(), [](char c) {
                         return c > ' ' && c < '\x7f' && c != '"' && c != '*';
                       });
  return is_good ? std::string(text) : "";
}

std::string ParseErrorCode(std::string_view xml) {
  pugi::xml_document document;
  if (!document.load_buffer(xml.data(), xml.size(), pugi::parse_default,
                            pugi::encoding_utf8)) {
    return "";
  }
  // S3: <Error><Code>; STS: <ErrorResponse><Error><Code>.
  const pugi::xml_node root = document.document_element();
  const pugi::xml_node error =
      std::strcmp(root.name(), "Error") == 0 ? root : root.child("Error");
  const std::string_view code = error.child_value("Code");
  return IsName(code) ? std::string(code) : "";
}

absl::StatusOr<ListAnswer> ParseListAnswer(std::string_view xml) {
  pugi::xml_document document;
  XC_ASSIGN_OR_RETURN(const pugi::xml_node root,
                      Root(document, xml, "ListBucketResult"));
  ListAnswer answer;
  const std::string_view truncated = root.child_value("IsTruncated");
  if (truncated != "true" && truncated != "false") {
    return Unexpected("<IsTruncated> true or false", "another");
  }
  answer.is_truncated = truncated == "true";
  for (pugi::xml_node entry = root.child("Contents"); entry;
       entry = entry.next_sibling("Contents")) {
    ListedObject object;
    object.key = entry.child_value("Key");
    object.etag = UnquoteEtag(entry.child_value("ETag"));
    const auto size = ParseSize(entry.child_value("Size"));
    const auto time = ParseXmlTime(entry.child_value("LastModified"));
    if (object.key.empty() || !size || !time) {
      return Unexpected("<Contents> with <Key>, <Size> and <LastModified>",
                        "one without, or with others");
    }
    object.num_bytes = *size;
    object.modified_unix_ms = *time;
    answer.objects.push_back(std::move(object));
  }
  return answer;
}

absl::StatusOr<TemporaryCredentials> ParseWebIdentityAnswer(
    std::string_view xml) {
  pugi::xml_document document;
  XC_ASSIGN_OR_RETURN(const pugi::xml_node root,
                      Root(document, xml, "AssumeRoleWithWebIdentityResponse"));
  const pugi::xml_node found =
      root.child("AssumeRoleWithWebIdentityResult").child("Credentials");
  TemporaryCredentials answer{
      .credentials = {.access_key_id = found.child_value("AccessKeyId"),
                      .secret_key = found.child_value("SecretAccessKey"),
                      .session_token = found.child_value("SessionToken")}};
  const auto expires = ParseXmlTime(found.child_value("Expiration"));
  if (!CheckCredentials(answer.credentials).ok() ||
      answer.credentials.session_token.empty() || !expires) {
    return Unexpected("<Credentials> of a session with <Expiration>",
                      "none, or others");
  }
  answer.expires_unix_ms = *expires;
  return answer;
}

}  // namespace xcache
