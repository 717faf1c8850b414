#include "server/metrics/metrics.h"

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/metrics/process_metrics.h"

namespace xcache {
namespace {

using ::testing::MatchesRegex;

const prometheus::MetricFamily* Find(
    const std::vector<prometheus::MetricFamily>& families,
    std::string_view name) {
  for (const auto& family : families) {
    if (family.name == name) return &family;
  }
  return nullptr;
}

double Value(const std::vector<prometheus::MetricFamily>& families,
             std::string_view name,
             const std::vector<std::string>& labels = {}) {
  const prometheus::MetricFamily* family = Find(families, name);
  if (family == nullptr) return -1;
  for (const auto& metric : family->metric) {
    std::vector<std::string> found;
    for (const auto& label : metric.label) found.push_back(label.value);
    if (found != labels) continue;
    return family->type == prometheus::MetricType::Counter
               ? metric.counter.value
               : metric.gauge.value;
  }
  return -1;
}

TEST(MetricTableTest, IsCompleteOrderedAndUnique) {
  const auto table = MetricTable();
  ASSERT_EQ(table.size(), static_cast<size_t>(Metric::kCount));
  std::set<std::string_view> names;
  for (size_t i = 0; i < table.size(); ++i) {
    EXPECT_EQ(static_cast<size_t>(table[i].id), i) << table[i].name;
    EXPECT_TRUE(names.insert(table[i].name).second) << table[i].name;
    EXPECT_FALSE(table[i].help.empty()) << table[i].name;
    EXPECT_EQ(table[i].help.back(), '.') << table[i].name;
  }
}

TEST(MetricTableTest, HoldsEverythingThatTheCoreCountsAndTimesOnce) {
  std::multiset<CoreCounter> counters;
  std::multiset<CoreHistogram> histograms;
  for (const MetricDef& def : MetricTable()) {
    for (const CoreCount& count : def.counts) {
      EXPECT_EQ(count.label.empty(), def.labels.empty()) << def.name;
      counters.insert(count.counter);
    }
    if (def.histogram.has_value()) histograms.insert(*def.histogram);
  }
  for (size_t i = 0; i < static_cast<size_t>(CoreCounter::kCount); ++i) {
    EXPECT_EQ(counters.count(static_cast<CoreCounter>(i)), 1u) << i;
  }
  for (size_t i = 0; i < static_cast<size_t>(CoreHistogram::kCount); ++i) {
    EXPECT_EQ(histograms.count(static_cast<CoreHistogram>(i)), 1u) << i;
  }
}

TEST(MetricTableTest, NamesFollowTheRules) {
  for (const MetricDef& def : MetricTable()) {
    const std::string name(def.name);
    EXPECT_THAT(name, MatchesRegex("(xcache|process)_[a-z0-9_]+"));
    const bool total = name.ends_with("_total");
    EXPECT_EQ(total, def.kind == MetricKind::kCounter) << name;
    if (def.kind == MetricKind::kHistogram) {
      EXPECT_TRUE(name.ends_with("_seconds")) << name;
    }
  }
}

TEST(MetricTableTest, EveryMetricIsOnThePageAndNoOther) {
  const char* root = std::getenv("XCACHE_SOURCE_DIR");
  ASSERT_NE(root, nullptr);
  std::ifstream in(std::string(root) + "/server/metrics/METRICS.md");
  std::map<std::string, std::string> rows;
  const std::regex row(R"(^\| `([a-z0-9_]+)` \| (\w+) \| (.*) \| .+ \|$)");
  for (std::string line; std::getline(in, line);) {
    std::smatch match;
    if (!std::regex_match(line, match, row)) continue;
    EXPECT_TRUE(
        rows.emplace(match[1], match[2].str() + " " + match[3].str()).second)
        << line;
  }
  for (const MetricDef& def : MetricTable()) {
    std::string expected = def.kind == MetricKind::kCounter ? "counter "
                           : def.kind == MetricKind::kGauge ? "gauge "
                                                            : "histogram ";
    for (size_t i = 0; i < def.labels.size(); ++i) {
      expected += (i > 0 ? ", `" : "`") + std::string(def.labels[i]) + "`";
    }
    if (def.labels.empty()) expected += "-";
    EXPECT_EQ(rows[std::string(def.name)], expected) << def.name;
  }
  EXPECT_EQ(rows.size(), MetricTable().size());
}

TEST(MetricsTest, AScrapeHoldsEachMetricOnceInOrder) {
  Metrics metrics;
  const auto families = metrics.Collect();
  ASSERT_EQ(families.size(), MetricTable().size());
  for (size_t i = 0; i < families.size(); ++i) {
    EXPECT_EQ(families[i].name, MetricTable()[i].name);
  }
}

TEST(MetricsTest, SamplesHaveTheLabelsOfTheTable) {
  Metrics metrics;
  metrics.CountRequest(Method::kScore, absl::StatusCode::kNotFound, 0.1);
  for (const auto& family : metrics.Collect()) {
    for (const MetricDef& def : MetricTable()) {
      if (def.name != family.name) continue;
      for (const auto& metric : family.metric) {
        std::vector<std::string_view> names;
        for (const auto& label : metric.label) names.push_back(label.name);
        EXPECT_EQ(names, def.labels) << def.name;
      }
    }
  }
}

TEST(MetricsTest, EveryMethodAndCodeIsCounted) {
  Metrics metrics;
  for (int m = 0; m < static_cast<int>(Method::kCount); ++m) {
    for (int c = 0; c <= 16; ++c) {
      for (int n = 0; n <= c; ++n) {
        metrics.CountRequest(static_cast<Method>(m),
                             static_cast<absl::StatusCode>(c), 0.001);
      }
    }
  }
  const auto families = metrics.Collect();
  std::set<std::string> codes;
  for (int m = 0; m < static_cast<int>(Method::kCount); ++m) {
    for (int c = 0; c <= 16; ++c) {
      const std::string code(CodeName(static_cast<absl::StatusCode>(c)));
      codes.insert(code);
      EXPECT_EQ(Value(families, "xcache_requests_total",
                      {std::string(MethodName(static_cast<Method>(m))), code}),
                c + 1);
    }
  }
  EXPECT_EQ(codes.size(), 17u);
  const auto* seconds = Find(families, "xcache_request_seconds");
  EXPECT_EQ(seconds->metric.at(0).histogram.sample_count, 17u * 18 / 2);
}

TEST(MetricsTest, EveryCoreCounterAndHistogramIsExported) {
  Metrics metrics;
  const auto sum = [&] {
    double total = 0;
    for (const auto& family : metrics.Collect()) {
      for (const auto& metric : family.metric) {
        total += metric.counter.value +
                 static_cast<double>(metric.histogram.sample_count);
      }
    }
    return total;
  };
  for (int c = 0; c < static_cast<int>(CoreCounter::kCount); ++c) {
    const double before = sum();
    metrics.Add(static_cast<CoreCounter>(c), 3);
    EXPECT_GE(sum(), before + 3) << c;
  }
  for (int h = 0; h < static_cast<int>(CoreHistogram::kCount); ++h) {
    const double before = sum();
    metrics.Observe(static_cast<CoreHistogram>(h), 0.25);
    EXPECT_GE(sum(), before + 1) << h;
  }
}

TEST(MetricsTest, CoreNamesMeetTheRightMetrics) {
  Metrics metrics;
  metrics.Add(CoreCounter::kReusedDisk, 7);
  metrics.Add(CoreCounter::kBlocksRematerialized, 2);
  metrics.Add(CoreCounter::kCommitFailures, 5);
  metrics.Add(CoreCounter::kWorkingSetEvictions, 4);
  metrics.Add(CoreCounter::kSessionsStep, 3);
  metrics.Observe(CoreHistogram::kRematBlock, 0.5);
  metrics.Observe(CoreHistogram::kTtft, 0.015);
  const auto families = metrics.Collect();
  EXPECT_EQ(Value(families, "xcache_reused_tokens_total", {"disk"}), 7);
  EXPECT_EQ(Value(families, "xcache_remat_tokens_total"), 128);
  EXPECT_EQ(Value(families, "xcache_remat_seconds_total"), 0.5);
  EXPECT_EQ(Value(families, "xcache_commits_total", {"failed"}), 5);
  EXPECT_EQ(Value(families, "xcache_evictions_total", {"device"}), 4);
  EXPECT_EQ(Value(families, "xcache_remat_sessions_total", {"step"}), 3);
  const auto& ttft = Find(families, "xcache_ttft_seconds")->metric.at(0);
  for (const auto& bucket : ttft.histogram.bucket) {
    EXPECT_EQ(bucket.cumulative_count, bucket.upper_bound >= 0.015 ? 1u : 0u);
  }
}

TEST(MetricsTest, SourcesAreAskedWhileTheirHandleLives) {
  Metrics metrics;
  int calls = 0;
  {
    const auto handle = metrics.AddSource([&](SampleWriter& writer) {
      ++calls;
      writer.Set(Metric::kPages, 12, {"host"});
    });
    EXPECT_EQ(Value(metrics.Collect(), "xcache_pages", {"host"}), 12);
  }
  EXPECT_EQ(Value(metrics.Collect(), "xcache_pages", {"host"}), -1);
  EXPECT_EQ(calls, 1);
}

TEST(MetricsTest, ProcessValuesAreThoseOfThisProcess) {
  Metrics metrics;
  const auto handle = metrics.AddSource(SampleProcess);
  const auto families = metrics.Collect();
  EXPECT_GT(Value(families, "process_resident_memory_bytes"), 1e6);
  EXPECT_GT(Value(families, "process_virtual_memory_bytes"), 1e6);
  EXPECT_GE(Value(families, "process_cpu_seconds_total"), 0);
  EXPECT_GE(Value(families, "process_open_fds"), 3);
  EXPECT_GT(Value(families, "process_max_fds"), 3);
  const double age = static_cast<double>(time(nullptr)) -
                     Value(families, "process_start_time_seconds");
  EXPECT_GE(age, -2);
  EXPECT_LE(age, 600);
}

}  // namespace
}  // namespace xcache
