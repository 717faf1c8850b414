#include "cachestore/shared/http_client.h"

#include <curl/curl.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <deque>
#include <list>
#include <map>
#include <system_error>
#include <thread>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "cachestore/shared/byte_rate.h"
#include "engine/base/mutex.h"

namespace xcache {
namespace {

using Clock = HttpRequest::Clock;
using Outcome = HttpAnswer::Outcome;
using std::chrono::milliseconds;

constexpr size_t kMaxErrorBytes = size_t{64} << 10;
constexpr size_t kMaxHeaders = 100;

struct EasyCleanup {
  void operator()(CURL* easy) const { curl_easy_cleanup(easy); }
};
struct ListCleanup {
  void operator()(curl_slist* list) const { curl_slist_free_all(list); }
};
struct MultiCleanup {
  void operator()(CURLM* multi) const { curl_multi_cleanup(multi); }
};

struct Waiting {
  HttpRequest request;
  HttpClient::Done done;
};

// What the callbacks of a transfer share with the loop.
struct Shared {
  ByteRate rate;
  std::atomic<int64_t> sent_bytes{0};
  std::atomic<int64_t> received_bytes{0};
};

// A request with a connection, or about to get one.
struct Transfer {
  explicit Transfer(Waiting w, Shared& s)
      : waiting(std::move(w)), shared(s), moved_at(Clock::now()) {}

  Waiting waiting;
  Shared& shared;
  HttpAnswer answer;
  Clock::time_point moved_at;  // when a byte last did
  size_t sent = 0;             // of the body
  bool is_paused = false;      // by the limit of bytes a second
  bool is_too_large = false;
  char curl_error[CURL_ERROR_SIZE] = {};
  std::unique_ptr<curl_slist, ListCleanup> headers;
  std::unique_ptr<CURL, EasyCleanup> easy;
};

size_t OnHeader(char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  transfer.moved_at = Clock::now();
  const size_t num_bytes = size * count;
  const std::string_view line(data, num_bytes);
  auto& headers = transfer.answer.headers;
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

size_t OnAnswer(char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  if (!transfer.shared.rate.MayTake()) {
    transfer.is_paused = true;
    return CURL_WRITEFUNC_PAUSE;  // curl keeps the bytes
  }
  const size_t num_bytes = size * count;
  transfer.moved_at = Clock::now();
  transfer.shared.rate.Take(num_bytes);
  transfer.shared.received_bytes += static_cast<int64_t>(num_bytes);
  std::string& body = transfer.answer.body;
  long code = 0;
  curl_easy_getinfo(transfer.easy.get(), CURLINFO_RESPONSE_CODE, &code);
  if (code >= 300) {
    body.append(data, std::min(num_bytes, kMaxErrorBytes - body.size()));
    return num_bytes;
  }
  const size_t most = transfer.waiting.request.max_answer_bytes;
  if (body.empty()) {
    curl_off_t length = -1;
    curl_easy_getinfo(transfer.easy.get(), CURLINFO_CONTENT_LENGTH_DOWNLOAD_T,
                      &length);
    if (length > 0 && static_cast<uint64_t>(length) > most) {
      transfer.is_too_large = true;
      return 0;
    }
    if (length > 0) body.reserve(static_cast<size_t>(length));
  }
  if (num_bytes > most - body.size()) {
    transfer.is_too_large = true;
    return 0;
  }
  body.append(data, num_bytes);
  return num_bytes;
}

size_t OnBody(char* to, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  const std::string& body = *transfer.waiting.request.body;
  const size_t num_bytes = std::min(size * count, body.size() - transfer.sent);
  if (num_bytes == 0) return 0;
  if (!transfer.shared.rate.MayTake()) {
    transfer.is_paused = true;
    return CURL_READFUNC_PAUSE;
  }
  transfer.moved_at = Clock::now();
  transfer.shared.rate.Take(num_bytes);
  transfer.shared.sent_bytes += static_cast<int64_t>(num_bytes);
  std::memcpy(to, body.data() + transfer.sent, num_bytes);
  transfer.sent += num_bytes;
  return num_bytes;
}

// curl wants the body once more, for another connection.
int OnSeek(void* user, curl_off_t offset, int origin) {
  auto& transfer = *static_cast<Transfer*>(user);
  const size_t size = transfer.waiting.request.body->size();
  if (origin != SEEK_SET || offset < 0 ||
      static_cast<uint64_t>(offset) > size) {
    return CURL_SEEKFUNC_FAIL;
  }
  transfer.answer.may_have_been_sent_before = true;
  transfer.sent = static_cast<size_t>(offset);
  return CURL_SEEKFUNC_OK;
}

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

std::string_view HttpAnswer::Header(std::string_view name) const {
  for (const auto& [have, value] : headers) {
    if (have == name) return value;
  }
  return {};
}

class HttpClient::Loop {
 public:
  Loop(const HttpOptions& options, CURLM* multi)
      : options_(options),
        multi_(multi),
        shared_{.rate = ByteRate(options.bytes_per_s, Clock::now())} {}

  void StartThread() {
    thread_ = std::thread([this] { Run(); });
  }

  void Start(Waiting waiting) {
    {
      MutexLock lock(mu_);
      if (!has_ended_) {
        ++queued_;
        arrived_.push_back(std::move(waiting));
        curl_multi_wakeup(multi_.get());
        return;
      }
    }
    waiting.done(Cancelled());
  }

  void Stop() {
    {
      MutexLock lock(mu_);
      stop_ = true;
      curl_multi_wakeup(multi_.get());
    }
    if (thread_.joinable()) thread_.join();
  }

  HttpStats stats() const {
    return {.sent_bytes = shared_.sent_bytes,
            .received_bytes = shared_.received_bytes,
            .running = running_count_,
            .queued = queued_};
  }

 private:
  using Transfers = std::list<Transfer>;

  static HttpAnswer Cancelled() {
    HttpAnswer answer;
    answer.error = "the client goes away";
    return answer;
  }

  void Run() {
    // Signals are for others' threads; TLS writes into a closed socket would
    // raise SIGPIPE.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    while (TakeArrived()) {
      StartReady();
      int still_running = 0;
      curl_multi_perform(multi_.get(), &still_running);
      TakeFinished();
      EndOverdue();
      Unpause();
      StartReady();
      int num_events = 0;
      curl_multi_poll(multi_.get(), nullptr, 0,
                      static_cast<int>(NextWait().count()), &num_events);
    }
    CancelAll();
  }

  // False: to be stopped.
  bool TakeArrived() {
    const auto now = Clock::now();
    MutexLock lock(mu_);
    for (Waiting& waiting : arrived_) {
      const auto at = std::max(now, waiting.request.not_before);
      first_deadline_ = std::min(first_deadline_, waiting.request.deadline);
      queue_.emplace(at, std::move(waiting));
    }
    arrived_.clear();
    return !stop_;
  }

  void StartReady() {
    const auto now = Clock::now();
    while (!queue_.empty() && queue_.begin()->first <= now) {
      if (running_.size() >= static_cast<size_t>(options_.max_connections)) {
        return;
      }
      Waiting waiting = std::move(queue_.begin()->second);
      queue_.erase(queue_.begin());
      --queued_;
      Begin(std::move(waiting));
    }
  }

  void Begin(Waiting waiting) {
    Transfer& transfer = running_.emplace_back(std::move(waiting), shared_);
    running_count_ = static_cast<int64_t>(running_.size());
    transfer.easy.reset(curl_easy_init());
    if (transfer.easy == nullptr || !SetUp(transfer) ||
        curl_multi_add_handle(multi_.get(), transfer.easy.get()) != CURLM_OK) {
      transfer.easy.reset();
      End(std::prev(running_.end()), Outcome::kNotSent, "no memory");
    }
  }

  bool SetUp(Transfer& transfer) const {
    const HttpRequest& request = transfer.waiting.request;
    CURL* easy = transfer.easy.get();
    bool is_good = true;
    const auto set = [easy, &is_good](CURLoption option, auto value) {
      is_good &= curl_easy_setopt(easy, option, value) == CURLE_OK;
    };
    const auto add_header = [&transfer, &is_good](const std::string& line) {
      curl_slist* const list =
          curl_slist_append(transfer.headers.get(), line.c_str());
      is_good &= list != nullptr;
      if (list == nullptr) return;
      (void)transfer.headers.release();
      transfer.headers.reset(list);
    };
    set(CURLOPT_URL, request.url.c_str());
    set(CURLOPT_PROTOCOLS_STR, "http,https");
    set(CURLOPT_PATH_AS_IS, 1L);  // what is signed is what is sent
    set(CURLOPT_HTTP_VERSION, long{CURL_HTTP_VERSION_1_1});
    set(CURLOPT_NOSIGNAL, 1L);
    set(CURLOPT_QUICK_EXIT, 1L);  // do not wait for a name that is looked up
    set(CURLOPT_CONNECTTIMEOUT_MS,
        static_cast<long>(options_.connect_timeout.count()));
    set(CURLOPT_TCP_KEEPALIVE, 1L);
    set(CURLOPT_BUFFERSIZE, 256L << 10);
    set(CURLOPT_UPLOAD_BUFFERSIZE, 256L << 10);
    set(CURLOPT_USERAGENT, "xcache");
    if (!options_.ca_file.empty()) {
      set(CURLOPT_CAINFO, options_.ca_file.c_str());
    }
    set(CURLOPT_ERRORBUFFER, static_cast<char*>(transfer.curl_error));
    set(CURLOPT_PRIVATE, static_cast<void*>(&transfer));
    set(CURLOPT_HEADERFUNCTION, &OnHeader);
    set(CURLOPT_HEADERDATA, static_cast<void*>(&transfer));
    set(CURLOPT_WRITEFUNCTION, &OnAnswer);
    set(CURLOPT_WRITEDATA, static_cast<void*>(&transfer));
    if (request.method == "HEAD") {
      set(CURLOPT_NOBODY, 1L);
    } else if (request.body != nullptr) {
      set(CURLOPT_UPLOAD, 1L);
      set(CURLOPT_INFILESIZE_LARGE,
          static_cast<curl_off_t>(request.body->size()));
      set(CURLOPT_READFUNCTION, &OnBody);
      set(CURLOPT_READDATA, static_cast<void*>(&transfer));
      set(CURLOPT_SEEKFUNCTION, &OnSeek);
      set(CURLOPT_SEEKDATA, static_cast<void*>(&transfer));
      add_header("Expect:");  // no waiting for a 100
      // Without a body to send again, curl does not tell of a second sending.
      transfer.answer.may_have_been_sent_before = request.body->empty();
    }
    if (request.method != "GET" && request.method != "HEAD") {
      set(CURLOPT_CUSTOMREQUEST, request.method.c_str());
    }
    for (const auto& [name, value] : request.headers) {
      add_header(absl::StrCat(name, ": ", value));
    }
    set(CURLOPT_HTTPHEADER, transfer.headers.get());
    return is_good;
  }

  void TakeFinished() {
    int num_left = 0;
    while (const CURLMsg* message =
               curl_multi_info_read(multi_.get(), &num_left)) {
      if (message->msg != CURLMSG_DONE) continue;
      const CURLcode code = message->data.result;
      void* of = nullptr;
      curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &of);
      const auto it =
          std::find_if(running_.begin(), running_.end(),
                       [of](const Transfer& t) { return &t == of; });
      if (it == running_.end()) continue;
      long http_code = 0;
      curl_easy_getinfo(it->easy.get(), CURLINFO_RESPONSE_CODE, &http_code);
      it->answer.code = static_cast<int>(http_code);
      it->answer.is_whole_for_sure =
          !it->answer.Header("content-length").empty() ||
          !it->answer.Header("transfer-encoding").empty();
      const std::string error =
          it->curl_error[0] != 0 ? it->curl_error : curl_easy_strerror(code);
      if (it->is_too_large) {
        End(it, Outcome::kTooLarge,
            absl::StrCat("an answer of more than ",
                         it->waiting.request.max_answer_bytes, " bytes"));
      } else {
        End(it, OutcomeOf(code), error);
      }
    }
  }

  // Those whose time is over.
  void EndOverdue() {
    const auto now = Clock::now();
    for (auto it = running_.begin(); it != running_.end();) {
      const auto next = std::next(it);
      if (it->is_paused) it->moved_at = now;
      if (it->waiting.request.deadline <= now) {
        End(it, Outcome::kTimedOut, "no answer in time");
      } else if (it->moved_at + options_.stall_timeout <= now) {
        End(it, Outcome::kLost,
            absl::StrCat("nothing for ", options_.stall_timeout.count(),
                         " ms"));
      }
      it = next;
    }
    if (now < first_deadline_) return;
    first_deadline_ = Clock::time_point::max();
    std::vector<Waiting> overdue;
    for (auto it = queue_.begin(); it != queue_.end();) {
      if (it->second.request.deadline <= now) {
        overdue.push_back(std::move(it->second));
        it = queue_.erase(it);
        --queued_;
      } else {
        first_deadline_ =
            std::min(first_deadline_, it->second.request.deadline);
        ++it;
      }
    }
    for (Waiting& waiting : overdue) {
      HttpAnswer answer;
      answer.outcome = Outcome::kTimedOut;
      answer.error = "no connection was free in time";
      waiting.done(std::move(answer));
    }
  }

  void Unpause() {
    shared_.rate.Fill(Clock::now());
    // Each in turn is the first to take.
    if (!running_.empty()) {
      running_.splice(running_.end(), running_, running_.begin());
    }
    for (Transfer& transfer : running_) {
      if (!shared_.rate.MayTake()) return;
      if (!transfer.is_paused) continue;
      transfer.is_paused = false;
      curl_easy_pause(transfer.easy.get(), CURLPAUSE_CONT);
    }
  }

  milliseconds NextWait() const {
    constexpr milliseconds kLongest{1000};
    const auto now = Clock::now();
    auto until = std::min(now + kLongest, first_deadline_);
    bool has_paused = false;
    for (const Transfer& transfer : running_) {
      until = std::min({until, transfer.waiting.request.deadline,
                        transfer.moved_at + options_.stall_timeout});
      has_paused |= transfer.is_paused;
    }
    const bool has_free =
        running_.size() < static_cast<size_t>(options_.max_connections);
    if (has_free && !queue_.empty()) {
      until = std::min(until, queue_.begin()->first);
    }
    auto wait = std::chrono::ceil<milliseconds>(until - now);
    if (has_paused) wait = std::min(wait, shared_.rate.Wait());
    return std::clamp(wait, milliseconds(0), kLongest);
  }

  void End(Transfers::iterator it, Outcome outcome, std::string error) {
    if (it->easy != nullptr) {
      curl_multi_remove_handle(multi_.get(), it->easy.get());
      it->easy.reset();
    }
    HttpAnswer answer = std::move(it->answer);
    answer.outcome = outcome;
    if (outcome != Outcome::kAnswered) {
      answer.body = std::string();
      answer.error = std::move(error);
    }
    const Done done = std::move(it->waiting.done);
    running_.erase(it);
    running_count_ = static_cast<int64_t>(running_.size());
    done(std::move(answer));
  }

  void CancelAll() {
    while (!running_.empty()) {
      End(running_.begin(), Outcome::kCancelled, Cancelled().error);
    }
    // What is called may start others.
    for (;;) {
      TakeArrived();
      auto queue = std::move(queue_);
      queue_.clear();
      queued_ -= static_cast<int64_t>(queue.size());
      for (auto& [at, waiting] : queue) waiting.done(Cancelled());
      MutexLock lock(mu_);
      if (arrived_.empty()) {
        has_ended_ = true;
        return;
      }
    }
  }

  const HttpOptions options_;
  const std::unique_ptr<CURLM, MultiCleanup> multi_;

  mutable Mutex mu_;
  std::deque<Waiting> arrived_ XC_GUARDED_BY(mu_);
  bool stop_ XC_GUARDED_BY(mu_) = false;
  bool has_ended_ XC_GUARDED_BY(mu_) = false;
  std::atomic<int64_t> queued_{0};
  std::atomic<int64_t> running_count_{0};

  // The thread's own.
  Shared shared_;
  std::multimap<Clock::time_point, Waiting> queue_;  // by when to start
  // Of none in the queue is it earlier.
  Clock::time_point first_deadline_ = Clock::time_point::max();
  Transfers running_;

  std::thread thread_;
};

HttpClient::HttpClient(std::unique_ptr<Loop> loop) : loop_(std::move(loop)) {}
HttpClient::~HttpClient() { Stop(); }

absl::StatusOr<std::shared_ptr<HttpClient>> HttpClient::Create(
    const HttpOptions& options) {
  static const CURLcode global = curl_global_init(CURL_GLOBAL_DEFAULT);
  CURLM* const multi = global == CURLE_OK ? curl_multi_init() : nullptr;
  if (multi == nullptr) {
    return absl::ResourceExhaustedError("HTTP client: libcurl does not start");
  }
  const auto max_connections = static_cast<long>(options.max_connections);
  curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, max_connections);
  curl_multi_setopt(multi, CURLMOPT_PIPELINING, long{CURLPIPE_NOTHING});
  auto loop = std::make_unique<Loop>(options, multi);
  try {
    loop->StartThread();
  } catch (const std::system_error&) {
    return absl::ResourceExhaustedError("HTTP client: no thread to be had");
  }
  return std::shared_ptr<HttpClient>(new HttpClient(std::move(loop)));
}

void HttpClient::Start(HttpRequest request, Done done) {
  loop_->Start({.request = std::move(request), .done = std::move(done)});
}
void HttpClient::CallAt(Clock::time_point at, std::function<void()> call) {
  // A request that is overdue before it may start.
  HttpRequest request;
  request.deadline = at;
  request.not_before = Clock::time_point::max();
  Start(std::move(request),
        [call = std::move(call)](const HttpAnswer&) { call(); });
}
void HttpClient::Stop() { loop_->Stop(); }
HttpStats HttpClient::stats() const { return loop_->stats(); }

}  // namespace xcache
