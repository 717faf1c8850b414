// What Prometheus expects of every process: CPU time, memory, descriptors,
// start time, read from /proc at each scrape.
#ifndef XCACHE_SERVER_METRICS_PROCESS_METRICS_H_
#define XCACHE_SERVER_METRICS_PROCESS_METRICS_H_

#include "server/metrics/metrics.h"

namespace xcache {

void SampleProcess(SampleWriter& writer);

// The gauges of the core.
void SampleCore(const CoreGauges& gauges, SampleWriter& writer);

}  // namespace xcache

#endif  // XCACHE_SERVER_METRICS_PROCESS_METRICS_H_
