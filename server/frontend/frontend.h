// What the front ends of a server share: one gate, one account of what clients'
// requests hold, one set of worker threads. However many doors a server has, it
// has these once.
#ifndef XCACHE_SERVER_FRONTEND_FRONTEND_H_
#define XCACHE_SERVER_FRONTEND_FRONTEND_H_

#include <algorithm>
#include <chrono>
#include <cstddef>

#include "server/core/tenants/tenant_ledger.h"
#include "server/frontend/auth.h"
#include "server/frontend/readiness_gate.h"
#include "server/frontend/request_bytes.h"
#include "server/frontend/stream_watchdog.h"
#include "server/frontend/work_classes.h"
#include "server/metrics/metrics.h"

namespace xcache {

struct StreamLimits {
  // A client that has not read for this long loses its answer...
  std::chrono::milliseconds stall{30'000};
  // ...as does one that lets this much wait.
  size_t queued_bytes = size_t{4} << 20;
};

// Borrowed; outlives every front end and their calls.
struct Frontend {
  struct Options {
    Metrics* metrics = nullptr;
    const Authenticator* auth = nullptr;
    TenantLedger* tenants = nullptr;  // null: nobody has limits
    StreamLimits stream_limits = {};
    RequestMemory request_memory = RequestMemory::Of(int64_t{2} << 30);
  };
  explicit Frontend(const Options& options)
      : metrics(*options.metrics),
        auth(*options.auth),
        tenants(options.tenants),
        stream_limits(options.stream_limits),
        request_memory(options.request_memory),
        request_bytes(options.request_memory.arrived_bytes()),
        watchdog(std::max<std::chrono::milliseconds>(
            options.stream_limits.stall / 10, std::chrono::milliseconds(10))) {}

  Metrics& metrics;
  const Authenticator& auth;
  TenantLedger* const tenants;
  const StreamLimits stream_limits;
  const RequestMemory request_memory;
  ReadinessGate gate;
  RequestBytes request_bytes;
  WorkClasses workers;
  StreamWatchdog watchdog;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_FRONTEND_H_
