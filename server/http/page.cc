#include "server/http/page.h"

#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/sha256.h"

namespace xcache {
namespace {

// 'sha256-...' of what the page has between these two.
std::string SourceOf(std::string_view begin, std::string_view end) {
  const size_t first = kPageText.find(begin) + begin.size();
  const Digest digest =
      Sha256Of(kPageText.substr(first, kPageText.find(end, first) - first));
  return absl::StrCat(
      "'sha256-",
      absl::Base64Escape(absl::string_view(
          reinterpret_cast<const char*>(digest.data()), digest.size())),
      "'");
}

}  // namespace

HttpResponse PageResponse() {
  HttpResponse out;
  out.content_type = "text/html; charset=utf-8";
  out.body = kPageText;
  out.headers = {
      {"Content-Security-Policy",
       absl::StrCat("default-src 'none'; connect-src 'self'; img-src data:; "
                    "script-src ",
                    SourceOf("<script>", "</script>"), "; style-src ",
                    SourceOf("<style>", "</style>"),
                    "; base-uri 'none'; form-action 'none'; "
                    "frame-ancestors 'none'")},
      {"X-Content-Type-Options", "nosniff"},
      {"Referrer-Policy", "no-referrer"},
      {"Cache-Control", "no-cache"}};
  return out;
}

}  // namespace xcache
