// xcache-eval: perplexity, divergence and page size of codecs on real texts.
//   xcache-eval --model M --text prose.txt --text code.txt
//     --codec 'xquant-gqa:bits=4;xquant-gqa:bits=2' --window 1024,4096
// Or, with --task, how often they write what FP16 K/V write, or find a fact.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/engine_factory.h"
#include "engine/model/model.h"
#include "engine/model/tokenizer.h"
#include "tests/eval/eval_report.h"
#include "tests/eval/eval_tasks.h"
#include "tests/eval/evaluate.h"

namespace xcache {
namespace {

struct Options {
  std::string model;
  std::string original;
  std::vector<std::string> texts;
  std::vector<std::string> codecs = {"xquant-gqa"};
  std::vector<int> window = {1024};
  int windows = 8;
  int turns = 1;
  int threads = 0;
  int memory_mb = 4096;
  std::string isa;
  std::string profile_dir;
  std::string csv;
  std::string task = "text";
  std::string tasks_out;
  int written = 64;
  uint64_t seed = 1;
  bool json = false;
};

// A bar on a terminal, with the time that is left; nothing elsewhere.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label) : label_(std::move(label)) {}
  ~ProgressBar() {
    if (shown_) std::fputs("\r\033[K", stderr);
  }

  void Show(std::string_view what, double fraction) {
    if (!terminal_) return;
    if (what != what_) {
      what_ = std::string(what);
      start_ = Clock::now();
    }
    constexpr int kWidth = 30;
    const int filled = static_cast<int>(fraction * kWidth);
    const double seconds =
        std::chrono::duration<double>(Clock::now() - start_).count();
    std::fprintf(stderr, "\r\033[K%s%s [%s%s] %3.0f %%", label_.c_str(),
                 what_.c_str(),
                 std::string(static_cast<size_t>(filled), '#').c_str(),
                 std::string(static_cast<size_t>(kWidth - filled), ' ').c_str(),
                 100.0 * fraction);
    if (fraction > 0.0 && seconds > 2.0) {
      std::fprintf(stderr, ", %.0f s left",
                   seconds / fraction * (1.0 - fraction));
    }
    shown_ = true;
  }

 private:
  using Clock = std::chrono::steady_clock;

  const bool terminal_ = isatty(STDERR_FILENO) != 0;
  const std::string label_;
  std::string what_;
  Clock::time_point start_;
  bool shown_ = false;
};

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) {
    return absl::NotFoundError(absl::StrCat("cannot read text file ", path));
  }
  return std::move(text).str();
}

// `bos` stands before the text of each window; -1: nothing does.
absl::StatusOr<std::vector<std::vector<TokenId>>> CutWindows(
    const std::string& text, const std::vector<TokenId>& ids, TokenId bos,
    int size, int count) {
  const auto window = static_cast<size_t>(bos < 0 ? size : size - 1);
  std::vector<std::vector<TokenId>> windows;
  for (size_t at = 0; at + window <= ids.size(); at += window) {
    if (windows.size() == static_cast<size_t>(count)) break;
    std::vector<TokenId>& out = windows.emplace_back();
    if (bos >= 0) out.push_back(bos);
    const auto begin = ids.begin() + static_cast<ptrdiff_t>(at);
    out.insert(out.end(), begin, begin + static_cast<ptrdiff_t>(window));
  }
  if (windows.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("text ", text, ": expected at least ", window,
                     " tokens for one window, found ", ids.size()));
  }
  if (windows.size() < static_cast<size_t>(count)) {
    std::fprintf(stderr,
                 "xcache-eval: text %s fills %zu of %d windows of %d tokens\n",
                 text.c_str(), windows.size(), count, size);
  }
  return windows;
}

struct Text {
  std::string name;
  std::vector<TokenId> ids;
};

absl::StatusOr<std::vector<Text>> ReadTexts(const Options& options,
                                            const Tokenizer& tokenizer) {
  std::vector<Text> texts;
  for (const std::string& path : options.texts) {
    XC_ASSIGN_OR_RETURN(const std::string text, ReadText(path));
    Text& out = texts.emplace_back();
    out.name = std::filesystem::path(path).stem().string();
    XC_ASSIGN_OR_RETURN(out.ids, tokenizer.Encode(text));
  }
  return texts;
}

// What is measured on windows of a text: themselves, or what they become.
absl::StatusOr<EvalTask> MakeTask(const Options& options, Engine& engine,
                                  const Tokenizer& tokenizer,
                                  std::vector<std::vector<TokenId>> windows,
                                  const ProgressFn& progress) {
  if (options.task == "greedy") {
    return ContinueGreedily(engine, std::move(windows),
                            static_cast<size_t>(options.written), progress);
  }
  if (options.task == "facts") {
    return AskForFacts(tokenizer, windows, options.seed);
  }
  return EvalTask{std::move(windows), {}};
}

int KvFp16BytesPerToken(const HyperParams& h) {
  constexpr int kFp16Bytes = 2, kKeysAndValues = 2;
  return h.num_layers * h.kv_dim() * kKeysAndValues * kFp16Bytes;
}

absl::Status Run(const Options& options) {
  XC_ASSIGN_OR_RETURN(auto model, Model::Load(options.model));
  const int context = model->hparams().context_length;
  const int written = options.task == "greedy" ? options.written : 0;
  for (int window : options.window) {
    if (window + written > context) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--window ", window, ": expected at most the model's context, ",
          context, ", with what is written"));
    }
  }
  EvalSetup setup;
  setup.model = model->hparams().name;
  setup.turns = options.turns;
  if (!options.original.empty()) {
    XC_ASSIGN_OR_RETURN(const auto original, Model::Load(options.original));
    setup.original_kv_bytes_per_token =
        KvFp16BytesPerToken(original->hparams());
  }
  XC_ASSIGN_OR_RETURN(auto tokenizer, Tokenizer::Create(model->gguf()));
  XC_ASSIGN_OR_RETURN(const std::vector<Text> texts,
                      ReadTexts(options, *tokenizer));
  std::ofstream csv;
  if (!options.csv.empty()) {
    csv.open(options.csv, std::ios::binary | std::ios::trunc);
    csv << EvalCsvHead();
  }
  std::ofstream tasks_out;
  if (!options.tasks_out.empty()) {
    tasks_out.open(options.tasks_out, std::ios::binary | std::ios::trunc);
  }

  EngineOptions engine_options;
  engine_options.num_threads = options.threads;
  engine_options.isa = options.isa;
  engine_options.profile_dir = options.profile_dir;
  std::unique_ptr<Engine> engine;
  {
    ProgressBar bar("");
    XC_ASSIGN_OR_RETURN(
        engine, CreateEngine(model, engine_options,
                             [&bar](std::string_view what, double fraction) {
                               bar.Show(what, fraction);
                             }));
  }
  std::vector<std::string> specs;
  for (const std::string& list : options.codecs) {
    for (std::string& spec : SplitSpecs(list)) specs.push_back(std::move(spec));
  }
  EvaluateOptions evaluate;
  evaluate.turns = options.turns;
  evaluate.threads =
      options.threads > 0
          ? options.threads
          : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  evaluate.memory_bytes = int64_t{options.memory_mb} << 20;
  for (const Text& text : texts) {
    for (int window : options.window) {
      XC_ASSIGN_OR_RETURN(
          auto windows, CutWindows(text.name, text.ids,
                                   tokenizer->add_bos() ? tokenizer->bos() : -1,
                                   window, options.windows));
      setup.text = text.name;
      setup.window = window;
      setup.windows = static_cast<int>(windows.size());
      std::vector<Evaluation> evaluations;
      {
        ProgressBar bar(absl::StrCat(text.name, " ", window, ": "));
        evaluate.progress = [&bar](std::string_view what, double fraction) {
          bar.Show(what, fraction);
        };
        XC_ASSIGN_OR_RETURN(const EvalTask task,
                            MakeTask(options, *engine, *tokenizer,
                                     std::move(windows), evaluate.progress));
        evaluate.answers = task.answers;
        XC_ASSIGN_OR_RETURN(evaluations,
                            Evaluate(*engine, specs, task.windows, evaluate));
        tasks_out << TaskJsonLines(text.name, task) << std::flush;
      }
      const std::string out = options.json ? EvalJsonLines(setup, evaluations)
                                           : EvalTable(setup, evaluations);
      std::fputs(out.c_str(), stdout);
      std::fflush(stdout);
      if (csv.is_open()) csv << EvalCsvRows(setup, evaluations) << std::flush;
    }
  }
  if (!options.csv.empty() && !csv) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot write ", options.csv, " (--csv)"));
  }
  if (!options.tasks_out.empty() && !tasks_out) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot write ", options.tasks_out, " (--tasks-out)"));
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Measures codecs on a text: perplexity, divergence from the lossless "
      "kv-fp16, bytes of pages.");
  app.add_option("--model", options.model, "GGUF file")->required();
  app.add_option("--text", options.texts, "text file, UTF-8; may be repeated")
      ->required();
  app.add_option("--codec", options.codecs,
                 "codec specs, parted by ';' or ','; may be repeated")
      ->capture_default_str();
  app.add_option("--window", options.window,
                 "tokens of a window; several: parted by ','")
      ->delimiter(',')
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  app.add_option("--windows", options.windows, "windows of a text, at most")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--task", options.task,
                 "text: the windows themselves; greedy: what kv-fp16 writes "
                 "after them; facts: numbers that are told early in each and "
                 "asked for at its end")
      ->check(CLI::IsMember({"text", "greedy", "facts"}))
      ->capture_default_str();
  app.add_option("--written", options.written,
                 "tokens that --task greedy writes")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of the facts")->capture_default_str();
  app.add_option("--tasks-out", options.tasks_out,
                 "write the task's windows into this file, for "
                 "llamacpp_answers.py --tasks");
  app.add_option("--turns", options.turns,
                 "feed each window in so many turns, with resumes from pages "
                 "in between; the figures are the same")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--original", options.original,
                 "the GQA model that --model was expanded from "
                 "(xcache-expand): its K/V bytes are compared too");
  app.add_option("--memory-mb", options.memory_mb,
                 "working sets held at once; codecs that do not fit are "
                 "measured one after another")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "threads (0: all CPUs)")
      ->capture_default_str();
  app.add_option("--isa", options.isa, "ref, avx2 or avx512 (default: best)");
  app.add_option("--profile-dir", options.profile_dir,
                 "folder that keeps profiles (default: made in memory)");
  app.add_option("--csv", options.csv, "write the figures into this file too");
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
