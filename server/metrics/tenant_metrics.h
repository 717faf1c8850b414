// Writes what tenants use of their limits as metrics: of tenants that an
// operator gave limits, and no others, so that there are few samples.
#ifndef XCACHE_SERVER_METRICS_TENANT_METRICS_H_
#define XCACHE_SERVER_METRICS_TENANT_METRICS_H_

#include "cachestore/session_store.h"
#include "server/core/tenants/tenant_ledger.h"
#include "server/metrics/metrics.h"

namespace xcache {

void SampleTenants(const TenantLedger& tenants, const SessionStore& store,
                   SampleWriter& writer);

}  // namespace xcache

#endif  // XCACHE_SERVER_METRICS_TENANT_METRICS_H_
