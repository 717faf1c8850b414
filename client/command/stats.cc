// `xcache stats`: the server's metrics page, for a person to watch.
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
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

std::string View(const MetricsText& now, const MetricsText* before,
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
  std::vector<std::vector<std::string>> rows = {
      {"server",
       absl::StrCat(now.Label("xcache_build_info", "version"), ", ",
                    now.Label("xcache_build_info", "model"), ", ",
                    now.Label("xcache_build_info", "codec"),
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
  for (const char* tier : {"device", "host", "disk", "remote"}) {
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
  return Table(rows);
}

nlohmann::json Summary(const MetricsText& page) {
  nlohmann::json out;
  for (const char* name :
       {"xcache_requests_running", "xcache_requests_waiting",
        "xcache_requests_total", "xcache_prompt_tokens_total",
        "xcache_generated_tokens_total", "xcache_reused_tokens_total",
        "xcache_prefilled_tokens_total", "xcache_prefill_tokens_per_second",
        "xcache_decode_tokens_per_second", "xcache_pages", "xcache_page_bytes",
        "xcache_memory_bytes", "xcache_memory_limit_bytes", "xcache_disk_bytes",
        "xcache_disk_limit_bytes", "xcache_sessions",
        "xcache_sessions_in_memory", "xcache_corrupt_pages_total",
        "xcache_corrupt_sessions_total"}) {
    // The names without the prefix that they all have.
    out[name + sizeof("xcache_") - 1] = page.Sum(name);
  }
  out["requests_failed_total"] = Failed(page);
  return out;
}

// False where Ctrl-C ended the wait.
bool Sleep(double seconds) {
  pollfd fd{Interrupts::fd(), POLLIN, 0};
  poll(&fd, 1, static_cast<int>(seconds * 1000));
  return !Interrupts::Pending();
}

int Run(const Context& context, const Options& options) {
  std::optional<MetricsText> before;
  absl::Time before_time;
  long lines = 0;
  const bool rewrite = IsTerminal(STDOUT_FILENO) && !context.json();
  while (true) {
    const auto text = HttpGet(context.globals().metrics_address, "/metrics");
    if (!text.ok()) return Fail(context, text.status());
    auto page = MetricsText::Parse(*text);
    if (!page.ok()) return Fail(context, page.status());
    const absl::Time now = absl::Now();
    if (context.json()) {
      context.PrintJson(Summary(*page));
    } else {
      const std::string view =
          View(*page, before ? &*before : nullptr,
               before ? absl::ToDoubleSeconds(now - before_time) : 0);
      if (rewrite && lines > 0) std::printf("\x1b[%ldA\x1b[J", lines);
      std::fputs(Printable(view).c_str(), stdout);
      if (!rewrite && !options.once) std::printf("\n");
      std::fflush(stdout);
      lines = std::count(view.begin(), view.end(), '\n');
    }
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
  stats->add_flag("--once", options->once, "Show them once");
  stats->add_option("--interval", options->interval, "Seconds between looks")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  stats->callback([options, action] {
    *action = [options](const Context& context) {
      return Run(context, *options);
    };
  });
}

}  // namespace xcache::command
