// `xcache stats`: the server's metrics page, for a person to watch.
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "client/command/commands.h"
#include "client/command/exit_code.h"
#include "client/command/metrics_text.h"
#include "client/command/text.h"

namespace xcache::command {
namespace {

struct Options {
  bool once = false;
  double interval = 2;
};

std::string Count(double n) {
  return HumanCount(static_cast<uint64_t>(std::max(0.0, n)));
}

std::string Percent(double part, double whole) {
  return whole > 0 ? absl::StrFormat("%.0f %%", 100 * part / whole) : "-";
}

// Quantiles of what happened since `before`, else since the start.
std::string Quantiles(const MetricsText& now, const MetricsText* before,
                      const std::string& histogram) {
  if (before != nullptr && !now.Quantile(histogram, 0.5, before)) {
    before = nullptr;
  }
  const auto p50 = now.Quantile(histogram, 0.5, before);
  const auto p95 = now.Quantile(histogram, 0.95, before);
  if (!p50 || !p95) return "-";
  return absl::StrCat(HumanDuration(absl::Seconds(*p50)), " / ",
                      HumanDuration(absl::Seconds(*p95)));
}

double Finished(const MetricsText& page) {
  return page.Sum("xcache_requests_total");
}

double Failed(const MetricsText& page) {
  return Finished(page) - page.Sum("xcache_requests_total", {{"code", "OK"}});
}

std::vector<std::pair<std::string, std::string>> View(const MetricsText& now,
                                                      const MetricsText* before,
                                                      double seconds) {
  const auto sum = [&](const char* name, const Labels& labels = {}) {
    return now.Sum(name, labels);
  };
  const auto rate = [&](const char* name) {
    if (before == nullptr || seconds <= 0) return std::string();
    return absl::StrFormat(", %.1f/s",
                           (now.Sum(name) - before->Sum(name)) / seconds);
  };
  const double reused = sum("xcache_reused_tokens_total");
  std::string sources;
  for (const char* source : {"device", "host", "disk", "remote"}) {
    const double n = sum("xcache_reused_tokens_total", {{"source", source}});
    if (n > 0) absl::StrAppend(&sources, ", ", source, " ", Count(n));
  }
  const auto build = [&](const char* label) {
    return OneLine(now.Label("xcache_build_info", label));
  };
  std::vector<std::pair<std::string, std::string>> rows = {
      {"server",
       absl::StrCat(build("version"), ", ", build("model"), ", ",
                    build("codec"),
                    sum("xcache_ready") > 0 ? ", ready" : ", not ready")},
      {"requests",
       absl::StrCat(Count(sum("xcache_requests_running")), " running, ",
                    Count(sum("xcache_requests_waiting")), " waiting (",
                    Count(sum("xcache_waiting_tokens")), " tokens), ",
                    Count(Finished(now)), " finished",
                    rate("xcache_requests_total"), ", ", Count(Failed(now)),
                    " of them failed")},
      {"tokens",
       absl::StrCat(Count(sum("xcache_prompt_tokens_total")), " in prompts, ",
                    Count(sum("xcache_generated_tokens_total")), " generated",
                    rate("xcache_generated_tokens_total"))},
      {"reused",
       absl::StrCat(Count(reused), " = ",
                    Percent(reused, sum("xcache_prompt_tokens_total")),
                    " of prompts", sources)},
      {"speed",
       absl::StrFormat("prefill %.0f, decode %.0f tokens/s, remat %.0f "
                       "tokens/s",
                       sum("xcache_prefill_tokens_per_second"),
                       sum("xcache_decode_tokens_per_second"),
                       64 * sum("xcache_remat_blocks_per_second"))},
      {"p50 / p95",
       absl::StrCat(
           "first token ", Quantiles(now, before, "xcache_ttft_seconds"),
           ", next ones ", Quantiles(now, before, "xcache_inter_token_seconds"),
           ", queue ", Quantiles(now, before, "xcache_queue_seconds"))},
  };
  for (const char* tier : {"device", "host", "disk", "shared"}) {
    const double pages = sum("xcache_pages", {{"tier", tier}});
    if (pages <= 0) continue;
    rows.push_back(
        {absl::StrCat(tier, " pages"),
         absl::StrCat(Count(pages), ", ",
                      HumanBytes(sum("xcache_page_bytes", {{"tier", tier}})),
                      ", ",
                      Count(sum("xcache_evictions_total", {{"tier", tier}})),
                      " evicted")});
  }
  rows.push_back(
      {"memory", absl::StrCat(HumanBytes(sum("xcache_memory_bytes")), " of ",
                              HumanBytes(sum("xcache_memory_limit_bytes")))});
  rows.push_back(
      {"disk", absl::StrCat(HumanBytes(sum("xcache_disk_bytes")), " of ",
                            HumanBytes(sum("xcache_disk_limit_bytes")),
                            sum("xcache_disk_degraded") > 0
                                ? ", FULL OR FAILING: nothing is written"
                                : "")});
  rows.push_back(
      {"sessions",
       absl::StrCat(Count(sum("xcache_sessions")), ", ",
                    Count(sum("xcache_sessions_in_memory")), " in memory")});
  const double damaged = sum("xcache_corrupt_pages_total") +
                         sum("xcache_tier_corrupt_pages_total");
  rows.push_back(
      {"damaged", absl::StrCat(Count(damaged), " pages, ",
                               Count(sum("xcache_corrupt_sessions_total")),
                               " sessions (dropped, recomputed)")});
  return rows;
}

// Every sample, by its metric.
nlohmann::json AllOf(const MetricsText& page) {
  nlohmann::json out = nlohmann::json::object();
  for (const auto& [name, samples] : page.samples()) {
    for (const MetricsText::Sample& sample : samples) {
      // JSON knows no infinity, nor what is no number.
      out[name].push_back(
          {{"labels", sample.labels},
           {"value", std::isfinite(sample.value) ? nlohmann::json(sample.value)
                                                 : nlohmann::json(nullptr)}});
    }
  }
  return out;
}

nlohmann::json Summary(const MetricsText& page) {
  nlohmann::json out;
  // Sums over all labels, by the names without the prefix that they all have.
  for (const auto& [name, samples] : page.samples()) {
    constexpr std::string_view kPrefix = "xcache_";
    if (name.starts_with(kPrefix) && !name.ends_with("_bucket")) {
      out[name.substr(kPrefix.size())] = page.Sum(name);
    }
  }
  out["requests_failed_total"] = Failed(page);
  out["samples"] = AllOf(page);
  return out;
}

// Rewrites what it showed before, on a terminal of any size that may change
// meanwhile.
class Screen {
 public:
  void Show(const std::vector<std::pair<std::string, std::string>>& rows) {
    const TerminalSize size = SizeOf(STDOUT_FILENO);
    const std::string text =
        FoldedTable(rows, static_cast<size_t>(size.columns));
    // The cursor's own line is not ours, and what left the screen at its top
    // cannot be rewritten.
    std::vector<std::string> lines =
        absl::StrSplit(text, '\n', absl::SkipEmpty());
    lines.resize(std::min(lines.size(),
                          static_cast<size_t>(std::max(size.rows - 1, 1))));
    if (size.columns != columns_ && shown_ > 0) {
      // Whether the terminal wrapped its lines anew is not known.
      std::printf("\x1b[H\x1b[2J");
    } else if (shown_ > 0) {
      std::printf("\x1b[%zuA\x1b[J", shown_);
    }
    std::printf("%s\n", absl::StrJoin(lines, "\n").c_str());
    std::fflush(stdout);
    shown_ = lines.size();
    columns_ = size.columns;
  }

 private:
  size_t shown_ = 0;
  int columns_ = 0;
};

// False where Ctrl-C ended the wait.
bool Sleep(double seconds) {
  pollfd fd{Interrupts::fd(), POLLIN, 0};
  poll(&fd, 1, static_cast<int>(seconds * 1000));
  return !Interrupts::Pending();
}

int Run(const Context& context, const Options& options) {
  std::optional<MetricsText> before;
  absl::Time before_time;
  Screen screen;
  const bool rewrite = IsTerminal(STDOUT_FILENO) && !context.json();
  while (true) {
    const auto text = HttpGet(context.globals().metrics_address, "/metrics");
    if (!text.ok()) {
      return Interrupts::Pending() ? kExitOk : Fail(context, text.status());
    }
    auto page = MetricsText::Parse(*text);
    if (!page.ok()) return Fail(context, page.status());
    const absl::Time now = absl::Now();
    if (context.json()) {
      context.PrintJson(Summary(*page));
    } else {
      const auto rows =
          View(*page, before ? &*before : nullptr,
               before ? absl::ToDoubleSeconds(now - before_time) : 0);
      if (rewrite) {
        screen.Show(rows);
      } else {
        constexpr size_t kAnyWidth = 10000;
        std::printf("%s%s", FoldedTable(rows, kAnyWidth).c_str(),
                    options.once ? "" : "\n");
        std::fflush(stdout);
      }
    }
    if (OutputError() != 0) return kExitFailed;  // Main() says it
    if (options.once) return kExitOk;
    before = *std::move(page);
    before_time = now;
    if (!Sleep(options.interval)) return kExitOk;
  }
}

}  // namespace

void AddStats(CLI::App* app, Action* action) {
  auto options = std::make_shared<Options>();
  CLI::App* stats =
      app->add_subcommand("stats", "Watch the server's metrics; Ctrl-C ends");
  CLI::Option* once =
      stats->add_flag("--once", options->once, "Show them once");
  stats->add_option("--interval", options->interval, "Seconds between looks")
      ->check(CLI::Range(0.1, 3600.0))
      ->excludes(once)
      ->capture_default_str();
  stats->callback([options, action] {
    *action = [options](const Context& context) {
      return Run(context, *options);
    };
  });
}

}  // namespace xcache::command
