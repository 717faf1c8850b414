#include "server/http/exchange.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace xcache {
namespace {

std::string_view StatusText(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "Internal Server Error";
  }
}

}  // namespace

void SplitTarget(std::string_view target, std::string* path,
                 std::string* query) {
  target = target.substr(0, target.find('#'));
  const size_t mark = std::min(target.find('?'), target.size());
  *query = target.substr(std::min(mark + 1, target.size()));
  target = target.substr(0, mark);
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (!target.starts_with(scheme)) continue;
    const size_t slash = target.find('/', scheme.size());
    target = slash == target.npos ? "/" : target.substr(slash);
    break;
  }
  *path = target;
}

std::string RenderHead(const HttpResponse& response,
                       std::optional<size_t> length, bool chunks,
                       bool keep_alive) {
  std::string out =
      absl::StrCat("HTTP/1.1 ", response.status, " ",
                   std::string(StatusText(response.status)),
                   "\r\nContent-Type: ", response.content_type, "\r\n");
  for (const auto& [name, value] : response.headers) {
    absl::StrAppend(&out, name, ": ", value, "\r\n");
  }
  if (length.has_value()) {
    absl::StrAppend(&out, "Content-Length: ", *length, "\r\n");
  } else if (chunks) {
    out += "Transfer-Encoding: chunked\r\n";
  }
  out += keep_alive ? "Connection: keep-alive\r\n\r\n"
                    : "Connection: close\r\n\r\n";
  return out;
}

std::string RenderResponse(const HttpResponse& response, bool with_body,
                           bool keep_alive) {
  std::string out =
      RenderHead(response, response.body.size(), true, keep_alive);
  if (with_body) out += response.body;
  return out;
}

Exchange::Exchange(HttpHead in, std::string in_body,
                   std::vector<RequestBytes::Held> in_arriving,
                   const StreamLimits& limits, WakeFn wake)
    : head(std::move(in)),
      body(std::move(in_body)),
      arriving(std::move(in_arriving)),
      cancellation_(std::make_shared<Cancellation>()),
      queue_(limits, cancellation_),
      wake_(std::move(wake)),
      keep_alive_(head.keep_alive) {}

void Exchange::DropBody() {
  body = std::string();
  arriving.clear();
}

void Exchange::Respond(const HttpResponse& response) {
  DropBody();
  queue_.SetEnd(
      /*drop=*/false,
      HttpBytes{RenderResponse(response, head.method != "HEAD", keep_alive_)});
  wake_(false);
}

void Exchange::Begin(const HttpResponse& response) {
  if (!head.chunks) keep_alive_ = false;
  Push(RenderHead(response, std::nullopt, head.chunks, keep_alive_));
}

void Exchange::Write(std::string_view data) {
  if (data.empty()) return;
  Push(head.chunks ? absl::StrCat(absl::Hex(data.size()), "\r\n",
                                  std::string(data), "\r\n")
                   : std::string(data));
}

void Exchange::End() {
  std::optional<HttpBytes> last;
  if (queue_.gave_up()) {
    // Something of the stream was dropped: its end must not look whole.
    keep_alive_ = false;
  } else if (head.chunks) {
    last = HttpBytes{"0\r\n\r\n"};
  }
  queue_.SetEnd(/*drop=*/false, std::move(last));
  wake_(false);
}

void Exchange::Push(std::string bytes) {
  const size_t size = bytes.size();
  queue_.Push({std::move(bytes)}, size);
  wake_(false);
}

void Exchange::SetTicker(std::function<void(SteadyTime)> ticker) {
  MutexLock lock(mu_);
  ticker_ = std::move(ticker);
}

void Exchange::Tick(SteadyTime now) {
  if (queue_.Check(now)) wake_(true);
  std::function<void(SteadyTime)> ticker;
  {
    MutexLock lock(mu_);
    ticker = ticker_;
  }
  if (ticker) ticker(now);
}

}  // namespace xcache
