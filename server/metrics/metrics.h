// Every metric of the server, in one table (metrics.cc), and where they are
// counted (collect.cc). METRICS.md explains them; a test holds table and page
// together.
//
// What happens is counted as it happens (requests here, the core's work through
// CoreMetrics); what is the case is asked for at each scrape, from sources.
#ifndef XCACHE_SERVER_METRICS_METRICS_H_
#define XCACHE_SERVER_METRICS_METRICS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/mutex.h"
#include "prometheus/collectable.h"
#include "prometheus/histogram.h"
#include "prometheus/metric_family.h"
#include "server/core/core_metrics.h"

namespace xcache {

// The methods of our services, as the label `method` names them.
enum class Method {
  kChat,
  kGenerate,
  kTokenize,
  kDetokenize,
  kScore,
  kGetModelInfo,
  kCreateSession,
  kGetSession,
  kListSessions,
  kDeleteSession,
  kForkSession,
  kMigrateSession,
  kExportSession,
  kImportSession,
  kUpdateSession,
  kPinSession,
  kUnpinSession,
  kFlushSession,
  // Of Triton's clients.
  kModelInfer,
  kModelStreamInfer,
  // Of the HTTP front end.
  kChatCompletions,
  kCompletions,
  kEmbeddings,
  kListModels,
  kRetrieveModel,
  kCreateResponse,
  kRetrieveResponse,
  kDeleteResponse,
  kListInputItems,
  kCreateConversation,
  kRetrieveConversation,
  kUpdateConversation,
  kDeleteConversation,
  kListConversationItems,
  kRetrieveConversationItem,
  kCount,
};
std::string_view MethodName(Method method);

// "OK", "INVALID_ARGUMENT", ...: the label `code`.
std::string_view CodeName(absl::StatusCode code);

enum class Metric {
  // Requests.
  kRequests,
  kRequestSeconds,
  kRequestsRunning,
  kRequestsWaiting,
  kWaitingTokens,
  kQueueRejections,
  kPreemptions,
  // Tenants that have limits.
  kTenantLimit,
  kTenantUse,
  kTenantRefusals,
  // What clients hold of the front end.
  kConnections,
  kConnectionsAccepted,
  kConnectionsRefused,
  kRequestBytes,
  kCredentialReloads,
  // Where a turn's time goes.
  kTtftSeconds,
  kInterTokenSeconds,
  kScheduledSeconds,
  kQueueSeconds,
  kRestoreSeconds,
  kPrefillSeconds,
  kDecodeSeconds,
  kCommitSeconds,
  kStepSeconds,
  kRematBlockSeconds,
  kPageLoadSeconds,
  kGrammarCompileSeconds,
  kGrammarMaskSeconds,
  // Tokens.
  kPromptTokens,
  kGeneratedTokens,
  kReusedTokens,
  kPrefilledTokens,
  kDraftedTokens,
  kAcceptedTokens,
  kRematTokens,
  kRematSeconds,
  kSteps,
  kStepRows,
  kPrefillRate,
  kDecodeRate,
  kRematBlockRate,
  kRematByteRate,
  // Pages and tiers.
  kPages,
  kPageBytes,
  kEvictions,
  kSequenceEvictions,
  kSeals,
  kSingleFlightWaits,
  kRecomputedBlocks,
  kMissingPages,
  kCorruptPages,
  kTierCorruptPages,
  kMismatchedPages,
  kSpillBytes,
  kLoadBytes,
  kSpillDroppedPages,
  kSpillQueueBytes,
  kPageHits,
  kPageMisses,
  kMemoryPeakBytes,
  kMemoryRefusals,
  kMemoryLimitBytes,
  kMemoryBytes,
  kDiskLimitBytes,
  kDiskBytes,
  kDiskFreeBytes,
  kDiskDegraded,
  kDiskDegradations,
  kPagesSetAside,
  kTornLogs,
  kDemotedSessions,
  kWalSyncs,
  kRocksdbTicker,
  kRocksdbProperty,
  // The shared tier.
  kSharedBreakerState,
  kSharedBreakerOpened,
  kSharedAheadSessions,
  kSharedConflicts,
  kSharedBranches,
  kSharedRequests,
  kSharedFailures,
  kSharedRetries,
  kSharedThrottled,
  kSharedBytes,
  kSharedPageBytes,
  kSharedQueueBytes,
  kSharedDroppedPages,
  kSharedOwedPages,
  kSharedNegativeHits,
  kSharedRefreshed,
  kSharedSweptFolders,
  kSharedSweptPages,
  kSharedWaitSeconds,
  kNotFetchedBlocks,
  // Sessions.
  kSessions,
  kSessionsInMemory,
  kUndurableSessions,
  kLastCommitTime,
  kLastBackupTime,
  kCommits,
  kExpiredSessions,
  kCorruptSessions,
  kRematSessions,
  kClockJump,
  // The process.
  kBuildInfo,
  kReady,
  kModelFileChanged,
  kProcessCpuSeconds,
  kProcessResidentBytes,
  kProcessVirtualBytes,
  kProcessOpenFds,
  kProcessMaxFds,
  kProcessStartTime,
  kCount,
};

enum class MetricKind { kCounter, kGauge, kHistogram };

// A counter of the core as a sample of a metric.
struct CoreCount {
  CoreCounter counter;
  std::string_view label = "";  // its value of the metric's label
  double unit = 1.0;            // what one count stands for
};

// All there is to say of a metric. What the core does not count or time is
// counted here (requests) or comes from a source at each scrape.
struct MetricDef {
  Metric id;
  std::string_view name;
  MetricKind kind;
  std::string_view help;
  std::vector<std::string_view> labels;  // their names
  std::vector<CoreCount> counts = {};
  std::optional<CoreHistogram> histogram = std::nullopt;
};

// In the order of Metric.
std::span<const MetricDef> MetricTable();

// Takes the values of one scrape.
class SampleWriter {
 public:
  virtual ~SampleWriter() = default;
  // A gauge's or counter's value, one label value for each of its labels.
  virtual void Set(Metric metric, double value,
                   std::initializer_list<std::string_view> labels = {}) = 0;
};
// Called at each scrape, by one thread at a time. Must not block for long.
using SampleSource = std::function<void(SampleWriter& writer)>;

// Thread-safe.
class Metrics final : public CoreMetrics, public prometheus::Collectable {
 public:
  Metrics();
  ~Metrics() override;

  // One request finished, also where it was refused.
  void CountRequest(Method method, absl::StatusCode code, double seconds);
  uint64_t requests(Method method, absl::StatusCode code) const;

  // From the core.
  void Add(CoreCounter counter, uint64_t n) override;
  void Observe(CoreHistogram histogram, double seconds) override;

  // Adds a source; the handle takes it away again when it is destroyed, after
  // which it is not called any more.
  class SourceHandle {
   public:
    SourceHandle() = default;
    SourceHandle(SourceHandle&& other) noexcept;
    SourceHandle& operator=(SourceHandle&& other) noexcept;
    ~SourceHandle();

   private:
    friend class Metrics;
    SourceHandle(Metrics* metrics, uint64_t id) : metrics_(metrics), id_(id) {}
    Metrics* metrics_ = nullptr;
    uint64_t id_ = 0;
  };
  [[nodiscard]] SourceHandle AddSource(SampleSource source) XC_EXCLUDES(mu_);

  // What a scrape sees: each metric of the table once, in its order.
  std::vector<prometheus::MetricFamily> Collect() const override
      XC_EXCLUDES(mu_);

 private:
  static constexpr size_t kMethods = static_cast<size_t>(Method::kCount);
  static constexpr size_t kCodes = 17;  // OK to UNAUTHENTICATED
  static constexpr size_t kCounters = static_cast<size_t>(CoreCounter::kCount);
  static constexpr size_t kHistograms =
      static_cast<size_t>(CoreHistogram::kCount);

  void RemoveSource(uint64_t id) XC_EXCLUDES(mu_);

  std::array<std::array<std::atomic<uint64_t>, kCodes>, kMethods> requests_{};
  std::vector<std::unique_ptr<prometheus::Histogram>> request_seconds_;
  std::array<std::atomic<uint64_t>, kCounters> counters_{};
  std::vector<std::unique_ptr<prometheus::Histogram>> histograms_;
  std::atomic<double> remat_seconds_{0.0};

  mutable Mutex mu_;
  uint64_t next_source_ XC_GUARDED_BY(mu_) = 1;
  std::vector<std::pair<uint64_t, SampleSource>> sources_ XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_SERVER_METRICS_METRICS_H_
