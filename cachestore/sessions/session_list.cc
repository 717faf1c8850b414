#include "cachestore/sessions/session_list.h"

#include <iterator>
#include <optional>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/coding.h"

namespace xcache {
namespace {

// A token is the place after which the next page starts.
std::string MakePageToken(const ListPlace& place) {
  std::string bytes;
  FieldWriter w(bytes);
  w.Int(place.first);
  w.Raw(place.second);
  return absl::WebSafeBase64Escape(bytes);
}

std::optional<ListPlace> ParsePageToken(std::string_view token) {
  std::string bytes;
  if (!absl::WebSafeBase64Unescape({token.data(), token.size()}, &bytes)) {
    return std::nullopt;
  }
  FieldReader r(bytes);
  ListPlace place;
  place.first = r.Int<int64_t>();
  place.second = r.Raw(r.remaining());
  if (!r.ok() || place.second.empty()) return std::nullopt;
  return place;
}

}  // namespace

absl::StatusOr<SessionPage> PageOf(
    const std::set<ListPlace>& order, std::string_view page_token, int limit,
    const std::function<SessionSummary(const std::string& id)>& summary) {
  auto it = order.begin();
  if (!page_token.empty()) {
    const auto after = ParsePageToken(page_token);
    if (!after) return absl::InvalidArgumentError("not a page token of ours");
    it = order.upper_bound(*after);
  }
  if (limit < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a page of ", limit, " sessions"));
  }
  SessionPage page;
  for (; it != order.end(); ++it) {
    if (static_cast<int>(page.sessions.size()) == limit) {
      page.next_page_token = MakePageToken(*std::prev(it));
      break;
    }
    page.sessions.push_back(summary(it->second));
  }
  return page;
}

}  // namespace xcache
