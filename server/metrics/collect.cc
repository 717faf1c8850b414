// Where metrics are counted, and what a scrape sees of them.
#include <algorithm>
#include <utility>

#include "server/metrics/metrics.h"

namespace xcache {
namespace {

constexpr size_t Index(auto id) { return static_cast<size_t>(id); }

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
  FamilyWriter() : families_(MetricTable().size()) {
    for (size_t i = 0; i < families_.size(); ++i) {
      const MetricDef& def = MetricTable()[i];
      families_[i].name = std::string(def.name);
      families_[i].help = std::string(def.help);
      families_[i].type =
          def.kind == MetricKind::kCounter ? prometheus::MetricType::Counter
          : def.kind == MetricKind::kGauge ? prometheus::MetricType::Gauge
                                           : prometheus::MetricType::Histogram;
    }
  }

  void Set(Metric metric, double value,
           std::initializer_list<std::string_view> labels) override {
    prometheus::ClientMetric& sample = Add(metric, labels);
    if (MetricTable()[Index(metric)].kind == MetricKind::kCounter) {
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
    const std::vector<std::string_view>& names =
        MetricTable()[Index(metric)].labels;
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
  for (const MetricDef& def : MetricTable()) {
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
