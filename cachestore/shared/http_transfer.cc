#include "cachestore/shared/http_transfer.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace xcache {
namespace {

using Outcome = HttpAnswer::Outcome;

constexpr size_t kMaxErrorBytes = size_t{64} << 10;
constexpr size_t kMaxHeaders = 100;

Outcome OutcomeOf(CURLcode code) {
  switch (code) {
    case CURLE_OK:
      return Outcome::kAnswered;
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_OPERATION_TIMEDOUT:  // of connecting: no other is set
      return Outcome::kNotSent;
    default:
      return Outcome::kLost;
  }
}

}  // namespace

size_t HttpTransfer::OnHeader(char* data, size_t size, size_t count,
                              void* user) {
  auto& transfer = *static_cast<HttpTransfer*>(user);
  transfer.moved_at_ = Clock::now();
  const size_t num_bytes = size * count;
  const std::string_view line(data, num_bytes);
  auto& headers = transfer.answer_.headers;
  if (line.starts_with("HTTP/")) {  // after a 100 comes another
    headers.clear();
    return num_bytes;
  }
  const size_t colon = line.find(':');
  if (colon != line.npos && headers.size() < kMaxHeaders) {
    const std::string name(line.substr(0, colon));
    const std::string value(line.substr(colon + 1));
    headers.emplace_back(absl::AsciiStrToLower(name),
                         absl::StripAsciiWhitespace(value));
  }
  return num_bytes;
}

size_t HttpTransfer::OnAnswer(char* data, size_t size, size_t count,
                              void* user) {
  auto& transfer = *static_cast<HttpTransfer*>(user);
  if (!transfer.traffic_.rate.MayTake()) {
    transfer.is_paused_ = true;
    return CURL_WRITEFUNC_PAUSE;  // curl keeps the bytes
  }
  const size_t num_bytes = size * count;
  transfer.moved_at_ = Clock::now();
  transfer.traffic_.rate.Take(num_bytes);
  transfer.traffic_.received_bytes += static_cast<int64_t>(num_bytes);
  std::string& body = transfer.answer_.body;
  long code = 0;
  curl_easy_getinfo(transfer.easy_.get(), CURLINFO_RESPONSE_CODE, &code);
  if (code >= 300) {
    body.append(data, std::min(num_bytes, kMaxErrorBytes - body.size()));
    return num_bytes;
  }
  const size_t most = transfer.request_.max_answer_bytes;
  if (body.empty()) {
    curl_off_t length = -1;
    curl_easy_getinfo(transfer.easy_.get(), CURLINFO_CONTENT_LENGTH_DOWNLOAD_T,
                      &length);
    if (length > 0 && static_cast<uint64_t>(length) > most) {
      transfer.is_too_large_ = true;
      return 0;
    }
    if (length > 0) body.reserve(static_cast<size_t>(length));
  }
  if (num_bytes > most - body.size()) {
    transfer.is_too_large_ = true;
    return 0;
  }
  body.append(data, num_bytes);
  return num_bytes;
}

size_t HttpTransfer::OnBody(char* to, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<HttpTransfer*>(user);
  const std::string& body = *transfer.request_.body;
  const size_t num_bytes = std::min(size * count, body.size() - transfer.sent_);
  if (num_bytes == 0) return 0;
  if (!transfer.traffic_.rate.MayTake()) {
    transfer.is_paused_ = true;
    return CURL_READFUNC_PAUSE;
  }
  transfer.moved_at_ = Clock::now();
  transfer.traffic_.rate.Take(num_bytes);
  transfer.traffic_.sent_bytes += static_cast<int64_t>(num_bytes);
  std::memcpy(to, body.data() + transfer.sent_, num_bytes);
  transfer.sent_ += num_bytes;
  return num_bytes;
}

// curl wants the body once more, for another connection.
int HttpTransfer::OnSeek(void* user, curl_off_t offset, int origin) {
  auto& transfer = *static_cast<HttpTransfer*>(user);
  const size_t size = transfer.request_.body->size();
  if (origin != SEEK_SET || offset < 0 ||
      static_cast<uint64_t>(offset) > size) {
    return CURL_SEEKFUNC_FAIL;
  }
  transfer.answer_.may_have_been_sent_before = true;
  transfer.sent_ = static_cast<size_t>(offset);
  return CURL_SEEKFUNC_OK;
}

bool HttpTransfer::SetUp(const HttpOptions& options) {
  easy_.reset(curl_easy_init());
  CURL* const easy = easy_.get();
  if (easy == nullptr) return false;
  bool is_good = true;
  const auto set = [easy, &is_good](CURLoption option, auto value) {
    is_good &= curl_easy_setopt(easy, option, value) == CURLE_OK;
  };
  set(CURLOPT_URL, request_.url.c_str());
  set(CURLOPT_PROTOCOLS_STR, "http,https");
  set(CURLOPT_PATH_AS_IS, 1L);  // what is signed is what is sent
  set(CURLOPT_HTTP_VERSION, long{CURL_HTTP_VERSION_1_1});
  set(CURLOPT_NOSIGNAL, 1L);
  set(CURLOPT_QUICK_EXIT, 1L);  // do not wait for a name that is looked up
  set(CURLOPT_CONNECTTIMEOUT_MS,
      static_cast<long>(options.connect_timeout.count()));
  set(CURLOPT_TCP_KEEPALIVE, 1L);
  set(CURLOPT_BUFFERSIZE, 256L << 10);
  set(CURLOPT_UPLOAD_BUFFERSIZE, 256L << 10);
  set(CURLOPT_USERAGENT, "xcache");
  if (!options.ca_file.empty()) {
    set(CURLOPT_CAINFO, options.ca_file.c_str());
  }
  set(CURLOPT_ERRORBUFFER, static_cast<char*>(curl_error_));
  set(CURLOPT_PRIVATE, static_cast<void*>(this));
  set(CURLOPT_HEADERFUNCTION, &OnHeader);
  set(CURLOPT_HEADERDATA, static_cast<void*>(this));
  set(CURLOPT_WRITEFUNCTION, &OnAnswer);
  set(CURLOPT_WRITEDATA, static_cast<void*>(this));
  if (request_.method == "HEAD") {
    set(CURLOPT_NOBODY, 1L);
  } else if (request_.body != nullptr) {
    set(CURLOPT_UPLOAD, 1L);
    set(CURLOPT_INFILESIZE_LARGE,
        static_cast<curl_off_t>(request_.body->size()));
    set(CURLOPT_READFUNCTION, &OnBody);
    set(CURLOPT_READDATA, static_cast<void*>(this));
    set(CURLOPT_SEEKFUNCTION, &OnSeek);
    set(CURLOPT_SEEKDATA, static_cast<void*>(this));
    is_good &= AddHeader("Expect:");  // no waiting for a 100
    // Without a body to send again, curl does not tell of a second sending.
    answer_.may_have_been_sent_before = request_.body->empty();
  }
  if (request_.method != "GET" && request_.method != "HEAD") {
    set(CURLOPT_CUSTOMREQUEST, request_.method.c_str());
  }
  for (const auto& [name, value] : request_.headers) {
    is_good &= AddHeader(absl::StrCat(name, ": ", value));
  }
  set(CURLOPT_HTTPHEADER, headers_.get());
  return is_good;
}

bool HttpTransfer::AddHeader(const std::string& line) {
  curl_slist* const list = curl_slist_append(headers_.get(), line.c_str());
  if (list == nullptr) return false;
  (void)headers_.release();
  headers_.reset(list);
  return true;
}

HttpTransfer* HttpTransfer::Of(CURL* easy) {
  void* transfer = nullptr;
  curl_easy_getinfo(easy, CURLINFO_PRIVATE, &transfer);
  return static_cast<HttpTransfer*>(transfer);
}

void HttpTransfer::Resume() {
  if (!is_paused_) return;
  is_paused_ = false;  // a callback within may set it again
  curl_easy_pause(easy_.get(), CURLPAUSE_CONT);
}

HttpAnswer HttpTransfer::Finish(CURLcode code) {
  if (is_too_large_) {
    return Fail(Outcome::kTooLarge,
                absl::StrCat("an answer of more than ",
                             request_.max_answer_bytes, " bytes"));
  }
  if (code != CURLE_OK) {
    return Fail(OutcomeOf(code),
                curl_error_[0] != 0 ? curl_error_ : curl_easy_strerror(code));
  }
  long http_code = 0;
  curl_easy_getinfo(easy_.get(), CURLINFO_RESPONSE_CODE, &http_code);
  answer_.outcome = Outcome::kAnswered;
  answer_.code = static_cast<int>(http_code);
  answer_.is_whole_for_sure = !answer_.Header("content-length").empty() ||
                              !answer_.Header("transfer-encoding").empty();
  easy_.reset();
  return std::move(answer_);
}

HttpAnswer HttpTransfer::Fail(Outcome outcome, std::string error) {
  easy_.reset();
  answer_.outcome = outcome;
  answer_.body = std::string();
  answer_.error = std::move(error);
  return std::move(answer_);
}

}  // namespace xcache
