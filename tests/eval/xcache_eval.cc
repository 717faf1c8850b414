// xcache-eval: perplexity, divergence and page size of codecs on real text.
// One JSON object a line with --json, a table without.
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/engine_factory.h"
#include "engine/model/model.h"
#include "engine/model/tokenizer.h"
#include "nlohmann/json.hpp"
#include "tests/eval/evaluate.h"

namespace xcache {
namespace {

struct Options {
  std::string model;
  std::string text;
  std::vector<std::string> codecs = {"xquant-gqa"};
  int window = 1024;
  int windows = 8;
  int threads = 0;
  std::string isa;
  std::string profile_dir;
  bool json = false;
};

// A bar on a terminal; nothing elsewhere.
void ShowProgress(std::string_view what, double fraction) {
  if (isatty(STDERR_FILENO) == 0) return;
  constexpr int kWidth = 40;
  const int filled = static_cast<int>(fraction * kWidth);
  std::fprintf(stderr, "\r%-10.10s [%s%s] %3.0f %%", std::string(what).c_str(),
               std::string(static_cast<size_t>(filled), '#').c_str(),
               std::string(static_cast<size_t>(kWidth - filled), ' ').c_str(),
               100.0 * fraction);
  if (fraction >= 1.0) std::fputs("\r\033[K", stderr);
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) {
    return absl::NotFoundError(absl::StrCat("cannot read text file ", path));
  }
  return std::move(text).str();
}

absl::StatusOr<std::vector<std::vector<TokenId>>> CutWindows(
    const std::vector<TokenId>& ids, const Options& options) {
  const auto window = static_cast<size_t>(options.window);
  std::vector<std::vector<TokenId>> windows;
  for (size_t at = 0; at + window <= ids.size(); at += window) {
    if (windows.size() == static_cast<size_t>(options.windows)) break;
    const auto begin = ids.begin() + static_cast<ptrdiff_t>(at);
    windows.emplace_back(begin, begin + options.window);
  }
  if (windows.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", ids.size(), " tokens; expected at least ",
                     window, " for one window"));
  }
  if (windows.size() < static_cast<size_t>(options.windows)) {
    std::fprintf(stderr, "xcache-eval: the text fills %zu of %d windows\n",
                 windows.size(), options.windows);
  }
  return windows;
}

void Print(const Evaluation& e, bool json) {
  if (!json) {
    std::printf("%-72s %8.3f %+8.3f %% %9.5f %8.4f %9.1f %7.2f\n",
                e.codec.c_str(), std::exp(e.nll()),
                100.0 * std::expm1(e.delta_nll()), e.kl(), e.top1_agreement(),
                e.page_bytes_per_token(), e.ratio());
    return;
  }
  nlohmann::ordered_json line;
  line["codec"] = e.codec;
  line["tokens"] = e.tokens;
  line["ppl"] = std::exp(e.nll());
  line["nll"] = e.nll();
  line["delta_nll"] = e.delta_nll();
  line["kl"] = e.kl();
  line["top1_agreement"] = e.top1_agreement();
  line["page_bytes_per_token"] = e.page_bytes_per_token();
  line["kv_fp16_bytes_per_token"] = e.kv_fp16_bytes_per_token;
  line["ratio"] = e.ratio();
  std::printf("%s\n", line.dump().c_str());
}

absl::Status Run(const Options& options) {
  XC_ASSIGN_OR_RETURN(const std::string text, ReadText(options.text));
  XC_ASSIGN_OR_RETURN(auto model, Model::Load(options.model));
  const int context = model->hparams().context_length;
  if (options.window > context) {
    return absl::InvalidArgumentError(
        absl::StrCat("--window ", options.window,
                     ": expected at most the model's context, ", context));
  }
  XC_ASSIGN_OR_RETURN(auto tokenizer, Tokenizer::Create(model->gguf()));
  XC_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, tokenizer->Encode(text));
  XC_ASSIGN_OR_RETURN(const auto windows, CutWindows(ids, options));

  EngineOptions engine_options;
  engine_options.num_threads = options.threads;
  engine_options.isa = options.isa;
  engine_options.profile_dir = options.profile_dir;
  XC_ASSIGN_OR_RETURN(auto engine,
                      CreateEngine(model, engine_options, ShowProgress));
  std::vector<std::string> specs;
  for (const std::string& list : options.codecs) {
    for (std::string& spec : SplitSpecs(list)) specs.push_back(std::move(spec));
  }
  XC_ASSIGN_OR_RETURN(const auto evaluations,
                      Evaluate(*engine, specs, windows, ShowProgress));
  if (!options.json) {
    std::printf("%-72s %8s %10s %9s %8s %9s %7s\n", "codec", "ppl", "change",
                "kl", "top-1", "bytes/tok", "ratio");
  }
  for (const Evaluation& evaluation : evaluations) {
    Print(evaluation, options.json);
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Measures codecs on a text: perplexity, divergence from the lossless "
      "kv-fp16, bytes of pages.");
  app.add_option("--model", options.model, "GGUF file")->required();
  app.add_option("--text", options.text, "text file, UTF-8")->required();
  app.add_option("--codec", options.codecs,
                 "codec specs, separated by commas; may be repeated")
      ->capture_default_str();
  app.add_option("--window", options.window, "tokens of a window")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  app.add_option("--windows", options.windows, "windows, at most")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "threads (0: all CPUs)")
      ->capture_default_str();
  app.add_option("--isa", options.isa, "ref, avx2 or avx512 (default: best)");
  app.add_option("--profile-dir", options.profile_dir,
                 "folder that keeps profiles (default: made in memory)");
  app.add_flag("--json", options.json, "one JSON object a line");
  CLI11_PARSE(app, argc, argv);

  InitLogging("warn");
  if (const absl::Status status = Run(options); !status.ok()) {
    std::fprintf(stderr, "xcache-eval: %s\n",
                 std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace xcache

int main(int argc, char** argv) { return xcache::Main(argc, argv); }
