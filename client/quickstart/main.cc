// xcache-quickstart: runs the main job and says what happened: a table for a
// person and, as the last line, one JSON object for a script. Exits with 1
// where an answer is not the one that it must be. How much was reused and how
// fast is told in figures and ratios, which depend on the machine's other work.
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/command/terminal.h"
#include "client/command/text.h"
#include "client/quickstart/job.h"
#include "nlohmann/json.hpp"

namespace xcache::quickstart {
namespace {

using client::Answer;
using command::HumanBytes;
using command::HumanCount;
using command::HumanDuration;

std::vector<std::string> Row(const std::string& name, const Answer& answer) {
  const double seconds = absl::ToDoubleSeconds(answer.timings.decode);
  const double rate =
      seconds > 0 && answer.generated_tokens > 1
          ? static_cast<double>(answer.generated_tokens - 1) / seconds
          : 0;
  return {name,
          HumanCount(answer.prompt_tokens),
          HumanCount(answer.reused.total()),
          HumanCount(answer.prefilled_tokens),
          HumanDuration(answer.client_ttft),
          HumanCount(answer.generated_tokens),
          absl::StrFormat("%.0f/s", rate)};
}

void PrintTable(const JobResult& result) {
  std::vector<std::vector<std::string>> rows = {
      {"", "prompt", "reused", "prefilled", "first token", "answer", "tokens"}};
  for (size_t i = 0; i < result.before.size(); ++i) {
    rows.push_back(Row(absl::StrCat("turn ", i + 1), result.before[i]));
  }
  rows.push_back({"kill -9"});
  rows.push_back(
      {absl::StrCat("start again (", HumanDuration(result.restart_time), ")")});
  const std::string turn = absl::StrCat("turn ", result.before.size() + 1);
  rows.push_back(Row(absl::StrCat(turn, ", resumed"), result.resumed));
  rows.push_back(
      Row(absl::StrCat(turn, ", nothing reused"), result.recomputed));
  rows.push_back(Row(absl::StrCat(turn, " of the twin"), result.twin.back()));
  std::printf("\n%s\n", command::Table(rows, {1, 2, 3, 4, 5, 6}).c_str());
}

// One line a promise; returns whether it is kept.
bool Check(bool kept, const std::string& text) {
  const command::Style style = command::Style::For(1);
  const std::string_view colour = kept ? style.green : style.red;
  std::printf("%s%s%s  %s\n", std::string(colour).c_str(),
              kept ? "ok  " : "MISS", std::string(style.reset).c_str(),
              text.c_str());
  return kept;
}

struct Figures {
  double recompute_ms, resume_ms, remat_ms, prefill_ms, reuse, ratio;
};

Figures Measure(const JobResult& result) {
  const Answer& resumed = result.resumed;
  return {absl::ToDoubleMilliseconds(result.recomputed.client_ttft),
          absl::ToDoubleMilliseconds(resumed.client_ttft),
          absl::ToDoubleMilliseconds(resumed.timings.remat),
          absl::ToDoubleMilliseconds(resumed.timings.prefill),
          static_cast<double>(resumed.reused.total()) /
              static_cast<double>(resumed.prompt_tokens),
          result.kv_fp16_bytes_per_token / result.page_bytes_per_token};
}

// Whether the answers are what they must be.
bool PrintChecks(const JobResult& result) {
  bool correct = Check(
      result.identical,
      result.identical
          ? absl::StrFormat("all %d answers are the twin's, ids and "
                            "log-probability bits; the last has %d tokens",
                            result.twin.size(), result.resumed.tokens.size())
          : absl::StrCat("not the twin's: ", result.difference));
  correct &= Check(result.recompute_identical,
                   "recomputed from nothing, the answer begins with the same "
                   "bits");
  return correct;
}

void PrintFigures(const JobResult& result, const Figures& f) {
  const std::vector<std::vector<std::string>> rows = {
      {"reused",
       absl::StrFormat("%.1f %% of the resumed prompt", 100 * f.reuse)},
      {"first token",
       absl::StrFormat("after %.0f ms, recomputed after %.0f ms: %.1fx sooner",
                       f.resume_ms, f.recompute_ms,
                       f.recompute_ms / f.resume_ms)},
      {"of these",
       absl::StrFormat("%.0f ms remat, %.0f ms prefill of %d tokens: %.2fx",
                       f.remat_ms, f.prefill_ms,
                       result.resumed.prefilled_tokens,
                       f.resume_ms / (f.remat_ms + f.prefill_ms))},
      {"pages", absl::StrFormat("%.0f bytes a token, FP16 K/V %.0f: %.2fx",
                                result.page_bytes_per_token,
                                result.kv_fp16_bytes_per_token, f.ratio)}};
  std::printf("%s\n", command::Table(rows).c_str());
}

void PrintJson(const JobResult& result, const Figures& f) {
  // In the order in which a person reads it.
  const nlohmann::ordered_json line = {
      {"codec", result.codec},
      {"prompt_tokens", result.resumed.prompt_tokens},
      {"reused_tokens", result.resumed.reused.total()},
      {"recompute_ttft_ms", f.recompute_ms},
      {"resume_ttft_ms", f.resume_ms},
      {"remat_ms", f.remat_ms},
      {"page_bytes_per_token", result.page_bytes_per_token},
      {"kv_fp16_bytes_per_token", result.kv_fp16_bytes_per_token},
      {"identical", result.identical}};
  std::printf("%s\n", line.dump().c_str());
}

int Main(int argc, char** argv) {
  JobOptions options;
  std::string notice;
  CLI::App app("Runs XCache's main job and says what happened.",
               "xcache-quickstart");
  app.add_option("--server", options.server, "The xcache-server program")
      ->required()
      ->check(CLI::ExistingFile);
  app.add_option("--model", options.model, "GGUF file")
      ->required()
      ->check(CLI::ExistingFile);
  app.add_option("--root", options.root, "Source folder, for its documents")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("--work-dir", options.work_dir, "For stores and logs")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("--codec", options.codec, "Empty: the server's default");
  app.add_option("--threads", options.threads, "0: one for each CPU");
  app.add_option("--history", options.history_tokens,
                 "Tokens before the crash, at least")
      ->capture_default_str();
  app.add_option("--tokens", options.continuation_tokens,
                 "Tokens of the answer after it")
      ->check(CLI::Range(64, 512))
      ->capture_default_str();
  app.add_option("--notice", notice, "Text to show before the JSON line");
  CLI11_PARSE(app, argc, argv);

  const auto result = RunJob(options);
  if (!result.ok()) {
    std::fprintf(stderr, "error: %s\n",
                 command::OneLine(result.status().message()).c_str());
    return 1;
  }
  const Figures figures = Measure(*result);
  std::printf("\nThe chat before the crash and after it (%s, %s):\n",
              result->codec.c_str(), result->device.c_str());
  PrintTable(*result);
  std::printf("The resumed answer: %s\n\n",
              command::OneLine(result->resumed.text).c_str());
  PrintFigures(*result, figures);
  const bool correct = PrintChecks(*result);
  if (!notice.empty()) std::printf("\n%s\n", notice.c_str());
  std::printf("\n");
  PrintJson(*result, figures);
  return correct ? 0 : 1;
}

}  // namespace
}  // namespace xcache::quickstart

int main(int argc, char** argv) { return xcache::quickstart::Main(argc, argv); }
