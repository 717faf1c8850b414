// A call of the HTTP API under way, whatever it is for: let in, worked on by a
// thread of its class, and answered once, whole or as a stream of events.
#ifndef XCACHE_SERVER_HTTP_OPENAI_CALL_H_
#define XCACHE_SERVER_HTTP_OPENAI_CALL_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/mutex.h"
#include "nlohmann/json.hpp"
#include "server/core/request.h"
#include "server/frontend/frontend.h"
#include "server/frontend/frontend_call.h"
#include "server/http/exchange.h"
#include "server/metrics/metrics.h"

namespace xcache {

// What the API is set up with.
struct OpenAiOptions {
  std::string model;  // the name that clients call it by
  // A stream on which nothing was sent for so long gets a comment, so that
  // proxies and clients do not take it for dead.
  std::chrono::milliseconds ping{15'000};
  Frontend* frontend = nullptr;  // borrowed; outlives all calls
};

CallFacts FactsOf(Method method, const HttpHead& head);

// Seconds of the Unix epoch.
int64_t UnixSeconds();

// Keeps itself alive until it has answered.
class OpenAiCall : public std::enable_shared_from_this<OpenAiCall> {
 public:
  virtual ~OpenAiCall() = default;

  // Lets the call in and has it submitted.
  void Start();

 protected:
  OpenAiCall(const OpenAiOptions& options, Method method,
             std::shared_ptr<Exchange> exchange);

  // On a worker's thread. An error: nothing was submitted, and it is answered
  // so.
  virtual absl::Status Submit() = 0;
  virtual WorkClass work() const;

  // Has `body` run on a worker's thread, or the call refused.
  void RunWork(std::function<absl::Status()> body);
  // A body as a tree, and the memory that is held while it is there.
  struct Tree {
    RequestBytes::Held held;
    nlohmann::json json;
  };
  // The body's; its bytes are freed.
  absl::StatusOr<Tree> TakeBody();
  // NOT_FOUND: another's; empty is whichever there is.
  absl::Status CheckModel(const std::string& model) const;
  virtual void Refuse(const absl::Status& status, int64_t retry_after_ms);
  void RespondJson(const nlohmann::json& body);
  void RespondBody(std::string body);  // that is JSON
  // One for each request of the core; the client's going away is that of all.
  std::vector<std::shared_ptr<Cancellation>> Cancellations(size_t count) const;

  // Of streams: what comes after so long a silence, from now on.
  void KeepPinging();
  void BeginStream() XC_REQUIRES(mu_);
  void WriteStream(std::string_view data) XC_REQUIRES(mu_);

  const OpenAiOptions& options_;
  const Method method_;
  const std::shared_ptr<Exchange> exchange_;
  FrontendCall call_;

  Mutex mu_;
  bool streaming_ XC_GUARDED_BY(mu_) = false;  // the head was sent
  bool ended_ XC_GUARDED_BY(mu_) = false;

 private:
  void Tick(SteadyTime now) XC_EXCLUDES(mu_);

  SteadyTime last_sent_ XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_OPENAI_CALL_H_
