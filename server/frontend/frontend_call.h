// What every call has in common, whatever it came by: letting it in, a thread
// for its work, and one place where it is counted and logged. What its
// transport knows of it, the transport says.
#ifndef XCACHE_SERVER_FRONTEND_FRONTEND_CALL_H_
#define XCACHE_SERVER_FRONTEND_FRONTEND_CALL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/core/request.h"
#include "server/core/server_core.h"
#include "server/core/tenants/tenant_ledger.h"
#include "server/frontend/frontend.h"
#include "server/frontend/request_bytes.h"
#include "server/frontend/trace_context.h"
#include "server/frontend/work_classes.h"
#include "server/metrics/metrics.h"

namespace xcache {

// The header that names a request, and what names it in the log.
inline constexpr char kRequestIdHeader[] = "x-request-id";

// A request is there twice while it is worked on: as it came, and as the core
// takes it.
inline constexpr int64_t kRequestCopies = 2;

// What a transport knows of a call.
struct CallFacts {
  Method method{};
  std::string peer;
  // The client's own, or nothing: then one is made, 64 random bits.
  std::optional<std::string> request_id;
  std::optional<TraceContext> trace;
  std::string session;  // that it names; may be any bytes
  SteadyTime deadline = SteadyTime::max();
};

class FrontendCall {
 public:
  FrontendCall(Frontend& frontend, CallFacts facts);

  // Lets the call of an authenticated tenant in: gate, tenant's limit, memory
  // for `bytes`, held to the call's end; what costs nothing comes first.
  absl::Status Admit(std::string tenant, int64_t bytes);
  // Memory for so many bytes more. RESOURCE_EXHAUSTED, INVALID_ARGUMENT: they
  // do not fit now, or never.
  absl::StatusOr<RequestBytes::Held> Hold(int64_t bytes) const;
  // Counts so many more requests as the tenant's.
  absl::Status TakePlaces(int64_t count);

  // Has a thread of the class run `body`, or else calls `refuse`, now or on
  // that thread: `body` will not run then. REQUIRES: admitted.
  using RefuseFn =
      std::function<void(const absl::Status&, int64_t retry_after_ms)>;
  void Run(WorkClass work, std::function<bool()> is_cancelled,
           std::function<void()> body, const RefuseFn& refuse);
  // When a call that was refused with `status` is to come again; 0: it is not
  // said.
  static int64_t RetryAfter(const absl::Status& status);

  // What the log is to know the conversation by, where nothing says it yet.
  // REQUIRES: nothing was submitted.
  void NameSession(std::string name) {
    if (facts_.session.empty()) facts_.session = std::move(name);
  }

  // Fills in what every request has. REQUIRES: admitted.
  void SetBase(const std::shared_ptr<Cancellation>& cancellation,
               RequestBase* base) const;

  const std::string& tenant() const { return tenant_; }
  ServerCore& core() const { return *core_; }
  const std::string& request_id() const { return request_id_; }

  // How the client is to be answered.
  struct Ending {
    absl::Status status;
    int64_t retry_after_ms = 0;
    ReadinessGate::Progress progress;  // of loading, where that is why
  };
  // Counts and logs the call's end (`details`: " key=value"s). Call exactly
  // once.
  Ending Close(absl::Status status, int64_t retry_after_ms,
               std::string_view details);

 private:
  // For log lines, " key=value"s: the request and its trace; the same and its
  // session.
  std::string DescribeRequest() const;
  std::string DescribeIds() const;

  Frontend& frontend_;
  CallFacts facts_;
  const SteadyTime start_;
  const std::string request_id_;
  std::string tenant_;
  ServerCore* core_ = nullptr;
  std::vector<TenantHold> places_;  // of the tenant's requests under way
  RequestBytes::Held held_;
};

// The log line's part that tells about a finished turn.
std::string DescribeFinal(const FinalInfo& final);

// What may be a header's value: printable ASCII, 200 bytes at most.
std::string PrintableHeader(std::string_view text);

// For the log: UTF-8.
std::string Loggable(std::string_view text);

// Whether a call begun at `start` and cancelled at `now` was cancelled by its
// deadline. The client's clock rings first: gRPC sends the time left rounded up
// to a millisecond or to about 1 %.
bool AtDeadline(SteadyTime start, SteadyTime deadline, SteadyTime now);

// Calls without a good token, for the log: a line a second at most, for who has
// none is not to fill the disk. Thread-safe.
class RefusalLog {
 public:
  void Note(std::string_view path, const absl::Status& status) XC_EXCLUDES(mu_);

 private:
  Mutex mu_;
  uint64_t unlogged_ XC_GUARDED_BY(mu_) = 0;
  SteadyTime last_logged_ XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_FRONTEND_CALL_H_
