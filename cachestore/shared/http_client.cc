#include "cachestore/shared/http_client.h"

#include <curl/curl.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <list>
#include <map>
#include <system_error>
#include <thread>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cachestore/shared/http_transfer.h"
#include "engine/base/mutex.h"

namespace xcache {
namespace {

using Clock = HttpRequest::Clock;
using Outcome = HttpAnswer::Outcome;
using std::chrono::milliseconds;

struct MultiCleanup {
  void operator()(CURLM* multi) const { curl_multi_cleanup(multi); }
};

struct Waiting {
  HttpRequest request;
  HttpClient::Done done;
};

// With a connection, or about to get one.
struct Running {
  Running(Waiting waiting, HttpTraffic& traffic)
      : transfer(std::move(waiting.request), traffic),
        done(std::move(waiting.done)) {}

  HttpTransfer transfer;
  HttpClient::Done done;
};

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
        traffic_{.rate = ByteRate(options.bytes_per_s, Clock::now())} {}

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
    return {.sent_bytes = traffic_.sent_bytes,
            .received_bytes = traffic_.received_bytes,
            .running = running_count_,
            .queued = queued_};
  }

 private:
  using RunningList = std::list<Running>;

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
    HttpTransfer& transfer =
        running_.emplace_back(std::move(waiting), traffic_).transfer;
    running_count_ = static_cast<int64_t>(running_.size());
    if (!transfer.SetUp(options_) ||
        curl_multi_add_handle(multi_.get(), transfer.easy()) != CURLM_OK) {
      Fail(std::prev(running_.end()), Outcome::kNotSent, "no memory");
    }
  }

  void TakeFinished() {
    int num_left = 0;
    while (const CURLMsg* message =
               curl_multi_info_read(multi_.get(), &num_left)) {
      if (message->msg != CURLMSG_DONE) continue;
      const CURLcode code = message->data.result;
      const HttpTransfer* const of = HttpTransfer::Of(message->easy_handle);
      const auto it =
          std::find_if(running_.begin(), running_.end(),
                       [of](const Running& r) { return &r.transfer == of; });
      if (it == running_.end()) continue;
      curl_multi_remove_handle(multi_.get(), it->transfer.easy());
      End(it, it->transfer.Finish(code));
    }
  }

  // Those whose time is over.
  void EndOverdue() {
    const auto now = Clock::now();
    for (auto it = running_.begin(); it != running_.end();) {
      const auto next = std::next(it);
      if (it->transfer.request().deadline <= now) {
        Fail(it, Outcome::kTimedOut, "no answer in time");
      } else if (it->transfer.MovedAt(now) + options_.stall_timeout <= now) {
        Fail(it, Outcome::kLost,
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
    traffic_.rate.Fill(Clock::now());
    // Each in turn is the first to take.
    if (!running_.empty()) {
      running_.splice(running_.end(), running_, running_.begin());
    }
    for (Running& running : running_) {
      if (!traffic_.rate.MayTake()) return;
      running.transfer.Resume();
    }
  }

  milliseconds NextWait() {
    constexpr milliseconds kLongest{1000};
    const auto now = Clock::now();
    auto until = std::min(now + kLongest, first_deadline_);
    bool has_paused = false;
    for (Running& running : running_) {
      HttpTransfer& transfer = running.transfer;
      until = std::min({until, transfer.request().deadline,
                        transfer.MovedAt(now) + options_.stall_timeout});
      has_paused |= transfer.is_paused();
    }
    const bool has_free =
        running_.size() < static_cast<size_t>(options_.max_connections);
    if (has_free && !queue_.empty()) {
      until = std::min(until, queue_.begin()->first);
    }
    auto wait = std::chrono::ceil<milliseconds>(until - now);
    if (has_paused) wait = std::min(wait, traffic_.rate.Wait());
    return std::clamp(wait, milliseconds(0), kLongest);
  }

  void Fail(RunningList::iterator it, Outcome outcome, std::string error) {
    if (it->transfer.easy() != nullptr) {
      curl_multi_remove_handle(multi_.get(), it->transfer.easy());
    }
    End(it, it->transfer.Fail(outcome, std::move(error)));
  }

  void End(RunningList::iterator it, HttpAnswer answer) {
    const Done done = std::move(it->done);
    running_.erase(it);
    running_count_ = static_cast<int64_t>(running_.size());
    done(std::move(answer));
  }

  void CancelAll() {
    while (!running_.empty()) {
      Fail(running_.begin(), Outcome::kCancelled, Cancelled().error);
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
  HttpTraffic traffic_;
  std::multimap<Clock::time_point, Waiting> queue_;  // by when to start
  // Of none in the queue is it earlier.
  Clock::time_point first_deadline_ = Clock::time_point::max();
  RunningList running_;

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
