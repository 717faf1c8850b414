// The table of metrics. Long, because each of them is a row of it.
#include "server/metrics/metrics.h"

#include <algorithm>
#include <utility>

#include "engine/types.h"

namespace xcache {
namespace {

constexpr size_t Index(auto id) { return static_cast<size_t>(id); }

using K = MetricKind;

const std::vector<MetricDef>& Table() {
  static const auto* const table = new std::vector<MetricDef>{
      {Metric::kRequests,
       "xcache_requests_total",
       K::kCounter,
       "Requests finished, by method and gRPC status code.",
       {"method", "code"}},
      {Metric::kRequestSeconds,
       "xcache_request_seconds",
       K::kHistogram,
       "Time from a request's arrival to its status, by method.",
       {"method"}},
      {Metric::kRequestsRunning,
       "xcache_requests_running",
       K::kGauge,
       "Requests that have a sequence in the engine now.",
       {}},
      {Metric::kRequestsWaiting,
       "xcache_requests_waiting",
       K::kGauge,
       "Requests in the queue now.",
       {}},
      {Metric::kWaitingTokens,
       "xcache_waiting_tokens",
       K::kGauge,
       "Prompt tokens of the requests in the queue now.",
       {}},
      {Metric::kQueueRejections,
       "xcache_queue_rejections_total",
       K::kCounter,
       "Requests refused because the queue was full or memory short.",
       {},
       {{CoreCounter::kQueueRejections}}},
      {Metric::kPreemptions,
       "xcache_preemptions_total",
       K::kCounter,
       "Running requests that lost their sequence and started over.",
       {},
       {{CoreCounter::kPreemptions}}},

      {Metric::kTenantLimit,
       "xcache_tenant_limit",
       K::kGauge,
       "What the token file allows a tenant, by limit.",
       {"tenant", "limit"}},
      {Metric::kTenantUse,
       "xcache_tenant_use",
       K::kGauge,
       "What the tenant has of it now.",
       {"tenant", "limit"}},
      {Metric::kTenantRefusals,
       "xcache_tenant_refusals_total",
       K::kCounter,
       "Calls of the tenant that the limit refused.",
       {"tenant", "limit"}},

      {Metric::kConnections,
       "xcache_connections",
       K::kGauge,
       "Connections of clients now.",
       {}},
      {Metric::kConnectionsAccepted,
       "xcache_connections_accepted_total",
       K::kCounter,
       "Connections of clients so far.",
       {}},
      {Metric::kConnectionsRefused,
       "xcache_connections_refused_total",
       K::kCounter,
       "Connections closed at once or to make room, by which limit.",
       {"reason"}},
      {Metric::kRequestBytes,
       "xcache_request_bytes",
       K::kGauge,
       "Memory that requests which are worked on hold now.",
       {}},
      {Metric::kCredentialReloads,
       "xcache_credential_reloads_total",
       K::kCounter,
       "Times that changed token or TLS files were read, or kept out as bad.",
       {"what", "result"}},

      {Metric::kTtftSeconds,
       "xcache_ttft_seconds",
       K::kHistogram,
       "Time from submission to the first sampled token.",
       {},
       {},
       CoreHistogram::kTtft},
      {Metric::kInterTokenSeconds,
       "xcache_inter_token_seconds",
       K::kHistogram,
       "Time between two sampled tokens of one request.",
       {},
       {},
       CoreHistogram::kInterToken},
      {Metric::kScheduledSeconds,
       "xcache_scheduled_seconds",
       K::kHistogram,
       "Time from submission to the scheduler until the request finished.",
       {},
       {},
       CoreHistogram::kEndToEnd},
      {Metric::kQueueSeconds,
       "xcache_queue_seconds",
       K::kHistogram,
       "Time that requests waited in the queue.",
       {},
       {},
       CoreHistogram::kQueue},
      {Metric::kRestoreSeconds,
       "xcache_restore_seconds",
       K::kHistogram,
       "Time that requests waited for pages and their rematerialization.",
       {},
       {},
       CoreHistogram::kRestore},
      {Metric::kPrefillSeconds,
       "xcache_prefill_seconds",
       K::kHistogram,
       "Time that requests spent in prefill.",
       {},
       {},
       CoreHistogram::kPrefill},
      {Metric::kDecodeSeconds,
       "xcache_decode_seconds",
       K::kHistogram,
       "Time that requests spent decoding.",
       {},
       {},
       CoreHistogram::kDecode},
      {Metric::kCommitSeconds,
       "xcache_commit_seconds",
       K::kHistogram,
       "Time to make a turn durable.",
       {},
       {},
       CoreHistogram::kCommit},
      {Metric::kStepSeconds,
       "xcache_step_seconds",
       K::kHistogram,
       "Time of one forward step over all running sequences.",
       {},
       {},
       CoreHistogram::kStep},
      {Metric::kRematBlockSeconds,
       "xcache_remat_block_seconds",
       K::kHistogram,
       "Time to rematerialize one block of 64 tokens.",
       {},
       {},
       CoreHistogram::kRematBlock},
      {Metric::kPageLoadSeconds,
       "xcache_page_load_seconds",
       K::kHistogram,
       "Time to read one batch of pages from disk.",
       {},
       {},
       CoreHistogram::kPageLoad},

      {Metric::kPromptTokens,
       "xcache_prompt_tokens_total",
       K::kCounter,
       "Tokens of the contexts of finished requests.",
       {},
       {{CoreCounter::kPromptTokens}}},
      {Metric::kGeneratedTokens,
       "xcache_generated_tokens_total",
       K::kCounter,
       "Tokens sampled.",
       {},
       {{CoreCounter::kGeneratedTokens}}},
      {Metric::kReusedTokens,
       "xcache_reused_tokens_total",
       K::kCounter,
       "Prompt tokens whose rows were reused, by where they came from.",
       {"source"},
       {{CoreCounter::kReusedDevice, "device"},
        {CoreCounter::kReusedHost, "host"},
        {CoreCounter::kReusedDisk, "disk"}}},
      {Metric::kPrefilledTokens,
       "xcache_prefilled_tokens_total",
       K::kCounter,
       "Prompt tokens forwarded through the model.",
       {},
       {{CoreCounter::kPrefilledTokens}}},
      {Metric::kRematTokens,
       "xcache_remat_tokens_total",
       K::kCounter,
       "Tokens whose K/V were rematerialized from pages.",
       {},
       {{CoreCounter::kBlocksRematerialized, "", kBlockTokens}}},
      {Metric::kRematSeconds,
       "xcache_remat_seconds_total",
       K::kCounter,
       "Time spent rematerializing.",
       {}},
      {Metric::kSteps,
       "xcache_steps_total",
       K::kCounter,
       "Forward steps of the engine.",
       {},
       {{CoreCounter::kSteps}}},
      {Metric::kStepRows,
       "xcache_step_rows_total",
       K::kCounter,
       "Rows (tokens) in those steps.",
       {},
       {{CoreCounter::kStepRows}}},
      {Metric::kPrefillRate,
       "xcache_prefill_tokens_per_second",
       K::kGauge,
       "Running average of the prefill rate.",
       {}},
      {Metric::kDecodeRate,
       "xcache_decode_tokens_per_second",
       K::kGauge,
       "Running average of the decode rate, all sequences together.",
       {}},
      {Metric::kRematBlockRate,
       "xcache_remat_blocks_per_second",
       K::kGauge,
       "Running average of blocks rematerialized a second.",
       {}},
      {Metric::kRematByteRate,
       "xcache_remat_bytes_per_second",
       K::kGauge,
       "Running average of page bytes rematerialized a second.",
       {}},

      {Metric::kPages,
       "xcache_pages",
       K::kGauge,
       "Pages (device: blocks of the working sets) in each tier now.",
       {"tier"}},
      {Metric::kPageBytes,
       "xcache_page_bytes",
       K::kGauge,
       "Bytes of those.",
       {"tier"}},
      {Metric::kEvictions,
       "xcache_evictions_total",
       K::kCounter,
       "Pages (device: blocks) dropped from a tier to make room.",
       {"tier"},
       {{CoreCounter::kWorkingSetEvictions, "device"}}},
      {Metric::kSequenceEvictions,
       "xcache_sequence_evictions_total",
       K::kCounter,
       "Idle sessions whose sequence left device memory.",
       {},
       {{CoreCounter::kSequenceEvictions}}},
      {Metric::kSeals,
       "xcache_seals_total",
       K::kCounter,
       "Blocks sealed into pages.",
       {},
       {{CoreCounter::kBlocksSealed}}},
      {Metric::kSingleFlightWaits,
       "xcache_single_flight_waits_total",
       K::kCounter,
       "Times a request waited for a block that another one was computing.",
       {},
       {{CoreCounter::kSingleFlightWaits}}},
      {Metric::kRecomputedBlocks,
       "xcache_recomputed_blocks_total",
       K::kCounter,
       "Blocks that had a page and were computed all the same, being cheaper.",
       {},
       {{CoreCounter::kRecomputedByCost}}},
      {Metric::kMissingPages,
       "xcache_missing_pages_total",
       K::kCounter,
       "Pages that a session named and that were not there.",
       {},
       {{CoreCounter::kPagesMissing}}},
      {Metric::kCorruptPages,
       "xcache_corrupt_pages_total",
       K::kCounter,
       "Pages that failed their checks when they were used, and were dropped.",
       {},
       {{CoreCounter::kPagesCorrupt}}},
      {Metric::kTierCorruptPages,
       "xcache_tier_corrupt_pages_total",
       K::kCounter,
       "Pages that a tier itself found damaged, and dropped.",
       {"tier"}},
      {Metric::kMismatchedPages,
       "xcache_mismatched_pages_total",
       K::kCounter,
       "Pages of an equal key with other bytes.",
       {}},
      {Metric::kSpillBytes,
       "xcache_spill_bytes_total",
       K::kCounter,
       "Page bytes written to disk.",
       {}},
      {Metric::kLoadBytes,
       "xcache_load_bytes_total",
       K::kCounter,
       "Page bytes read from disk.",
       {}},
      {Metric::kSpillDroppedPages,
       "xcache_spill_dropped_pages_total",
       K::kCounter,
       "Pages not written: the disk was full, over its cap or failing.",
       {}},
      {Metric::kSpillQueueBytes,
       "xcache_spill_queue_bytes",
       K::kGauge,
       "Page bytes that wait to be written to disk now.",
       {}},
      {Metric::kPageHits,
       "xcache_page_hits_total",
       K::kCounter,
       "Page lookups that found their page, by tier.",
       {"tier"}},
      {Metric::kPageMisses,
       "xcache_page_misses_total",
       K::kCounter,
       "Page lookups that found none, by tier.",
       {"tier"}},
      {Metric::kMemoryPeakBytes,
       "xcache_memory_peak_bytes",
       K::kGauge,
       "The most that was ever in use of --memory-bytes.",
       {}},
      {Metric::kMemoryRefusals,
       "xcache_memory_refusals_total",
       K::kCounter,
       "Reservations that did not fit, also after making room.",
       {}},
      {Metric::kMemoryLimitBytes,
       "xcache_memory_limit_bytes",
       K::kGauge,
       "The cap of --memory-bytes.",
       {}},
      {Metric::kMemoryBytes,
       "xcache_memory_bytes",
       K::kGauge,
       "Bytes in use of it, by account.",
       {"account"}},
      {Metric::kDiskLimitBytes,
       "xcache_disk_limit_bytes",
       K::kGauge,
       "The cap of --disk-bytes.",
       {}},
      {Metric::kDiskBytes,
       "xcache_disk_bytes",
       K::kGauge,
       "Bytes in use of it: all files of the store.",
       {}},
      {Metric::kDiskFreeBytes,
       "xcache_disk_free_bytes",
       K::kGauge,
       "Bytes free on the store's file system.",
       {}},
      {Metric::kDiskDegraded,
       "xcache_disk_degraded",
       K::kGauge,
       "1 while nothing is written: the disk is full or failing.",
       {}},
      {Metric::kDiskDegradations,
       "xcache_disk_degradations_total",
       K::kCounter,
       "How often that began.",
       {}},
      {Metric::kPagesSetAside,
       "xcache_pages_set_aside_total",
       K::kCounter,
       "How often a damaged database of pages was set aside, and begun anew.",
       {}},
      {Metric::kTornLogs,
       "xcache_torn_logs_total",
       K::kCounter,
       "Logs of sessions that ended in rubbish at the start.",
       {}},
      {Metric::kDemotedSessions,
       "xcache_demoted_sessions_total",
       K::kCounter,
       "Sessions whose pages the disk's cap made evictable.",
       {}},
      {Metric::kWalSyncs,
       "xcache_wal_syncs_total",
       K::kCounter,
       "Syncs of RocksDB's write-ahead log.",
       {}},
      {Metric::kRocksdbTicker,
       "xcache_rocksdb_ticker_total",
       K::kCounter,
       "RocksDB's own counters, by its names.",
       {"ticker"}},
      {Metric::kRocksdbProperty,
       "xcache_rocksdb_property",
       K::kGauge,
       "RocksDB's own properties, by its names.",
       {"property"}},

      {Metric::kSessions,
       "xcache_sessions",
       K::kGauge,
       "Sessions that there are now.",
       {}},
      {Metric::kSessionsInMemory,
       "xcache_sessions_in_memory",
       K::kGauge,
       "Sessions with a working set in device memory now.",
       {}},
      {Metric::kUndurableSessions,
       "xcache_undurable_sessions",
       K::kGauge,
       "Sessions whose last turn is in memory only now.",
       {}},
      {Metric::kCommits,
       "xcache_commits_total",
       K::kCounter,
       "Turns made durable, or not (then the answer says DURABILITY_MEMORY).",
       {"result"},
       {{CoreCounter::kCommits, "ok"},
        {CoreCounter::kCommitFailures, "failed"}}},
      {Metric::kExpiredSessions,
       "xcache_expired_sessions_total",
       K::kCounter,
       "Sessions deleted because their time was over.",
       {},
       {{CoreCounter::kSessionsExpired}}},
      {Metric::kCorruptSessions,
       "xcache_corrupt_sessions_total",
       K::kCounter,
       "Session records that could not be read.",
       {},
       {{CoreCounter::kSessionsCorrupt}}},
      {Metric::kRematSessions,
       "xcache_remat_sessions_total",
       K::kCounter,
       "Sessions that were given a remat policy, by which.",
       {"policy"},
       {{CoreCounter::kSessionsResume, "resume"},
        {CoreCounter::kSessionsStep, "step"}}},
      {Metric::kClockJump,
       "xcache_clock_jump_seconds",
       K::kGauge,
       "How far the wall clock is ahead of the time by which sessions expire, "
       "while it is not believed.",
       {}},

      {Metric::kBuildInfo,
       "xcache_build_info",
       K::kGauge,
       "1; the labels say what runs.",
       {"version", "model", "codec", "numerics_id"}},
      {Metric::kReady,
       "xcache_ready",
       K::kGauge,
       "1 while requests are served; 0 while loading or draining.",
       {}},
      {Metric::kModelFileChanged,
       "xcache_model_file_changed",
       K::kGauge,
       "1 once the model's file is no longer the one that was loaded.",
       {}},
      {Metric::kProcessCpuSeconds,
       "process_cpu_seconds_total",
       K::kCounter,
       "CPU time of the process, user and system.",
       {}},
      {Metric::kProcessResidentBytes,
       "process_resident_memory_bytes",
       K::kGauge,
       "Resident memory of the process.",
       {}},
      {Metric::kProcessVirtualBytes,
       "process_virtual_memory_bytes",
       K::kGauge,
       "Virtual memory of the process.",
       {}},
      {Metric::kProcessOpenFds,
       "process_open_fds",
       K::kGauge,
       "Open file descriptors.",
       {}},
      {Metric::kProcessMaxFds,
       "process_max_fds",
       K::kGauge,
       "How many file descriptors may be open.",
       {}},
      {Metric::kProcessStartTime,
       "process_start_time_seconds",
       K::kGauge,
       "When the process started, seconds of the Unix epoch.",
       {}},
  };
  return *table;
}

// 100 us (a block's remat) to 2 minutes (a long answer), 1-2-5 steps: a
// quantile read off them is within a factor of 2.5.
std::vector<double> SecondsBuckets() {
  std::vector<double> bounds;
  for (double decade = 1e-4; decade < 50.0; decade *= 10.0) {
    for (double step : {1.0, 2.0, 5.0}) bounds.push_back(decade * step);
  }
  bounds.push_back(100.0);
  bounds.push_back(200.0);
  return bounds;
}

class FamilyWriter final : public SampleWriter {
 public:
  FamilyWriter() : families_(Table().size()) {
    for (size_t i = 0; i < families_.size(); ++i) {
      const MetricDef& def = Table()[i];
      families_[i].name = std::string(def.name);
      families_[i].help = std::string(def.help);
      families_[i].type =
          def.kind == K::kCounter ? prometheus::MetricType::Counter
          : def.kind == K::kGauge ? prometheus::MetricType::Gauge
                                  : prometheus::MetricType::Histogram;
    }
  }

  void Set(Metric metric, double value,
           std::initializer_list<std::string_view> labels) override {
    prometheus::ClientMetric& sample = Add(metric, labels);
    if (Table()[Index(metric)].kind == K::kCounter) {
      sample.counter.value = value;
    } else {
      sample.gauge.value = value;
    }
  }

  void SetHistogram(Metric metric, prometheus::ClientMetric::Histogram value,
                    std::initializer_list<std::string_view> labels) {
    Add(metric, labels).histogram = std::move(value);
  }

  std::vector<prometheus::MetricFamily> Take() { return std::move(families_); }

 private:
  prometheus::ClientMetric& Add(
      Metric metric, std::initializer_list<std::string_view> labels) {
    prometheus::MetricFamily& family = families_[Index(metric)];
    prometheus::ClientMetric& sample = family.metric.emplace_back();
    const std::vector<std::string_view>& names = Table()[Index(metric)].labels;
    const size_t count = std::min(names.size(), labels.size());
    for (size_t i = 0; i < count; ++i) {
      sample.label.push_back(
          {std::string(names[i]), std::string(labels.begin()[i])});
    }
    return sample;
  }

  std::vector<prometheus::MetricFamily> families_;
};

}  // namespace

std::string_view MethodName(Method method) {
  static constexpr std::string_view kNames[] = {
      "Chat",          "Generate",      "Tokenize",      "Detokenize",
      "Score",         "GetModelInfo",  "CreateSession", "GetSession",
      "ListSessions",  "DeleteSession", "ForkSession",   "MigrateSession",
      "ExportSession", "ImportSession", "UpdateSession", "PinSession",
      "UnpinSession",  "FlushSession"};
  static_assert(std::size(kNames) == Index(Method::kCount));
  return kNames[Index(method)];
}

std::string_view CodeName(absl::StatusCode code) {
  static constexpr std::string_view kNames[] = {"OK",
                                                "CANCELLED",
                                                "UNKNOWN",
                                                "INVALID_ARGUMENT",
                                                "DEADLINE_EXCEEDED",
                                                "NOT_FOUND",
                                                "ALREADY_EXISTS",
                                                "PERMISSION_DENIED",
                                                "RESOURCE_EXHAUSTED",
                                                "FAILED_PRECONDITION",
                                                "ABORTED",
                                                "OUT_OF_RANGE",
                                                "UNIMPLEMENTED",
                                                "INTERNAL",
                                                "UNAVAILABLE",
                                                "DATA_LOSS",
                                                "UNAUTHENTICATED"};
  const auto index = static_cast<size_t>(code);
  return index < std::size(kNames) ? kNames[index] : "UNKNOWN";
}

std::span<const MetricDef> MetricTable() { return Table(); }

Metrics::Metrics() {
  for (size_t i = 0; i < kMethods; ++i) {
    request_seconds_.push_back(
        std::make_unique<prometheus::Histogram>(SecondsBuckets()));
  }
  for (size_t i = 0; i < kHistograms; ++i) {
    histograms_.push_back(
        std::make_unique<prometheus::Histogram>(SecondsBuckets()));
  }
}

Metrics::~Metrics() = default;

void Metrics::CountRequest(Method method, absl::StatusCode code,
                           double seconds) {
  size_t index = static_cast<size_t>(code);
  if (index >= kCodes) index = Index(absl::StatusCode::kUnknown);
  requests_[Index(method)][index].fetch_add(1, std::memory_order_relaxed);
  request_seconds_[Index(method)]->Observe(seconds);
}

uint64_t Metrics::requests(Method method, absl::StatusCode code) const {
  return requests_[Index(method)][static_cast<size_t>(code)].load(
      std::memory_order_relaxed);
}

void Metrics::Add(CoreCounter counter, uint64_t n) {
  counters_[Index(counter)].fetch_add(n, std::memory_order_relaxed);
}

void Metrics::Observe(CoreHistogram histogram, double seconds) {
  histograms_[Index(histogram)]->Observe(seconds);
  if (histogram == CoreHistogram::kRematBlock) {
    remat_seconds_.fetch_add(seconds, std::memory_order_relaxed);
  }
}

Metrics::SourceHandle Metrics::AddSource(SampleSource source) {
  MutexLock lock(mu_);
  sources_.emplace_back(next_source_, std::move(source));
  return SourceHandle(this, next_source_++);
}

void Metrics::RemoveSource(uint64_t id) {
  MutexLock lock(mu_);
  std::erase_if(sources_, [id](const auto& s) { return s.first == id; });
}

Metrics::SourceHandle::SourceHandle(SourceHandle&& other) noexcept
    : metrics_(std::exchange(other.metrics_, nullptr)), id_(other.id_) {}

Metrics::SourceHandle& Metrics::SourceHandle::operator=(
    SourceHandle&& other) noexcept {
  std::swap(metrics_, other.metrics_);
  std::swap(id_, other.id_);
  return *this;
}

Metrics::SourceHandle::~SourceHandle() {
  if (metrics_ != nullptr) metrics_->RemoveSource(id_);
}

std::vector<prometheus::MetricFamily> Metrics::Collect() const {
  FamilyWriter writer;
  for (size_t m = 0; m < kMethods; ++m) {
    const std::string_view method = MethodName(static_cast<Method>(m));
    for (size_t c = 0; c < kCodes; ++c) {
      const uint64_t n = requests_[m][c].load(std::memory_order_relaxed);
      // Each method's OK is there from the start, so that rates have a zero to
      // start from; the other pairs appear when they occur.
      if (n == 0 && c != Index(absl::StatusCode::kOk)) continue;
      writer.Set(Metric::kRequests, static_cast<double>(n),
                 {method, CodeName(static_cast<absl::StatusCode>(c))});
    }
    writer.SetHistogram(Metric::kRequestSeconds,
                        request_seconds_[m]->Collect().histogram, {method});
  }
  for (const MetricDef& def : Table()) {
    for (const CoreCount& count : def.counts) {
      const uint64_t n =
          counters_[Index(count.counter)].load(std::memory_order_relaxed);
      writer.Set(def.id, static_cast<double>(n) * count.unit, {count.label});
    }
    if (def.histogram.has_value()) {
      writer.SetHistogram(
          def.id, histograms_[Index(*def.histogram)]->Collect().histogram, {});
    }
  }
  writer.Set(Metric::kRematSeconds,
             remat_seconds_.load(std::memory_order_relaxed), {});
  MutexLock lock(mu_);
  for (const auto& [id, source] : sources_) source(writer);
  return writer.Take();
}

}  // namespace xcache
