// xcache-calibrate: makes the profile of xquant-tc for a model, from texts and
// from what the model writes itself.
//   xcache-calibrate --model M --text prose.txt --text code.py --out FOLDER
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/log.h"
#include "engine/base/sha256.h"
#include "engine/base/status_macros.h"
#include "engine/base/thread_pool.h"
#include "engine/calibration/fit.h"
#include "engine/calibration/float_model.h"
#include "engine/calibration/model_text.h"
#include "engine/calibration/observations.h"
#include "engine/calibration/observations_file.h"
#include "engine/calibration/products.h"
#include "engine/engine_factory.h"
#include "engine/kernels/isa.h"
#include "engine/model/model.h"
#include "engine/model/tokenizer.h"
#include "engine/xcache/profile.h"

namespace xcache {
namespace {

struct Options {
  std::string model;
  std::vector<std::string> texts;
  std::string out;
  std::string keep;
  std::string isa;
  int threads = 0;
  size_t windows = 48;
  size_t gradients = 16;
  size_t written = 12;
  size_t window_tokens = 1024;
  uint64_t seed = 1;
  FitOptions fit;
};

constexpr size_t kMaxTextBytes = size_t{256} << 20;

class Progress {
 public:
  void operator()(std::string_view what, double fraction) {
    const auto now = std::chrono::steady_clock::now();
    if (what == what_ && now - last_ < std::chrono::seconds(5)) return;
    if (what != what_) start_ = now;
    what_ = what;
    last_ = now;
    std::fprintf(stderr, "%s: %.0f %% (%.0f s)\n", what_.c_str(),
                 100.0 * fraction,
                 std::chrono::duration<double>(now - start_).count());
  }

 private:
  std::string what_;
  std::chrono::steady_clock::time_point start_{}, last_{};
};

// `count` windows of the texts, as many of each as the others, or as there are,
// spread evenly over it.
absl::Status CutTexts(const Options& options, const Tokenizer& tokenizer,
                      size_t count, std::vector<std::vector<TokenId>>* windows,
                      std::string* origin) {
  size_t texts_left = options.texts.size();
  for (const std::string& path : options.texts) {
    XC_ASSIGN_OR_RETURN(const std::string text,
                        ReadSmallFile(path, kMaxTextBytes));
    XC_ASSIGN_OR_RETURN(const std::vector<TokenId> ids, tokenizer.Encode(text));
    const size_t there = ids.size() / options.window_tokens;
    const size_t taken = std::min(there, (count + texts_left - 1) / texts_left);
    for (size_t i = 0; i < taken; ++i) {
      const auto at =
          ids.begin() +
          static_cast<ptrdiff_t>(i * there / taken * options.window_tokens);
      windows->emplace_back(at,
                            at + static_cast<ptrdiff_t>(options.window_tokens));
    }
    absl::StrAppend(origin, std::filesystem::path(path).filename().string(),
                    " sha256 ", ToHex(Sha256Of(text)), " windows ", taken,
                    "\n");
    count -= taken;
    --texts_left;
  }
  return absl::OkStatus();
}

// Adds the windows that the model writes.
absl::Status WriteText(const Options& options, int threads,
                       const std::shared_ptr<const Model>& model,
                       const ProgressFn& report,
                       std::vector<std::vector<TokenId>>* windows) {
  if (options.written == 0) return absl::OkStatus();
  EngineOptions engine_options;
  engine_options.device = "cpu";
  engine_options.num_threads = threads;
  engine_options.isa = options.isa;
  XC_ASSIGN_OR_RETURN(const auto engine,
                      CreateEngine(model, engine_options, report));
  XC_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Create(model->gguf()));
  const TokenId first = tokenizer->bos() >= 0
                            ? tokenizer->bos()
                            : std::max<TokenId>(tokenizer->eos(), 0);
  XC_ASSIGN_OR_RETURN(auto written, WriteWindows(*engine, options.written,
                                                 options.window_tokens, first,
                                                 options.seed, report));
  windows->insert(windows->end(), written.begin(), written.end());
  return absl::OkStatus();
}

absl::Status Run(Options options) {
  Progress progress;
  const ProgressFn report = [&](std::string_view what, double fraction) {
    progress(what, fraction);
  };
  if (options.window_tokens % kBlockTokens != 0 ||
      options.window_tokens < 2 * kBlockTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("--window-tokens: expected a multiple of ", kBlockTokens,
                     ", at least two, found ", options.window_tokens));
  }
  const int threads =
      options.threads > 0
          ? options.threads
          : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  XC_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa(options.isa));
  XC_ASSIGN_OR_RETURN(const auto model, Model::Load(options.model));
  XC_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Create(model->gguf()));

  std::vector<std::vector<TokenId>> windows;
  std::string origin;
  XC_RETURN_IF_ERROR(
      CutTexts(options, *tokenizer,
               options.windows - std::min(options.windows, options.written),
               &windows, &origin));
  if (options.written > 0) {
    absl::StrAppend(&origin, "written by the model, seed ", options.seed,
                    " windows ", options.written, "\n");
  }
  ThreadPool pool(threads);
  const Products products(GetKernels(isa), &pool);
  const Digest inputs =
      Sha256Of(absl::StrCat(ToHex(model->fingerprint()), " ", origin,
                            options.gradients, " ", options.window_tokens));
  absl::StatusOr<Observations> seen =
      options.keep.empty() ? absl::NotFoundError("not kept")
                           : LoadObservations(inputs, options.keep);
  if (!seen.ok()) {
    XC_RETURN_IF_ERROR(WriteText(options, threads, model, report, &windows));
    XC_ASSIGN_OR_RETURN(const auto floats,
                        FloatModel::Create(*model, isa, &pool));
    seen = Observe(*floats, model->hparams(), products, std::move(windows),
                   options.gradients, options.seed, report);
    if (!options.keep.empty()) {
      XC_RETURN_IF_ERROR(SaveObservations(*seen, inputs, options.keep));
    }
  }
  XC_ASSIGN_OR_RETURN(
      TransformData data,
      FitTransform(*model, *seen, options.fit, products, report));
  data.origin = std::move(origin);
  for (size_t l = 0; l < data.levels.size(); ++l) {
    std::string channels;
    for (const auto& group : data.levels[l].groups) {
      absl::StrAppend(&channels, " ", group.channels);
    }
    std::fprintf(stderr, "%s: step %g, channels%s\n",
                 std::string(kLevelNames[l]).c_str(),
                 static_cast<double>(data.levels[l].step), channels.c_str());
  }
  return Profile::Save(
      *NewTransformProfile(std::move(data), model->fingerprint()), options.out,
      model->fingerprint());
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Makes the profile of the codec xquant-tc for a model, from texts and "
      "from what the model writes itself.");
  app.add_option("--model", options.model, "GGUF file")->required();
  app.add_option("--text", options.texts, "text file, UTF-8; may be repeated");
  app.add_option("--out", options.out,
                 "folder of profiles, as the server's --profile-dir")
      ->required();
  app.add_option("--keep", options.keep,
                 "file that keeps what was seen of the model: a calibration "
                 "that was stopped, or is made again with other options of the "
                 "fit, goes on from it");
  app.add_option("--windows", options.windows, "windows in all")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--gradients", options.gradients,
                 "windows of which gradients are taken")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--written", options.written,
                 "windows that the model writes itself")
      ->check(CLI::Range(0, 1 << 10))
      ->capture_default_str();
  app.add_option("--window-tokens", options.window_tokens, "tokens of a window")
      ->capture_default_str();
  app.add_option("--group-layers", options.fit.group_layers,
                 "layers under one transform, at most")
      ->capture_default_str();
  app.add_option("--rank", options.fit.rank, "rank of predictions")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--steps", options.fit.steps,
                 "steps of the levels high, balanced and small")
      ->capture_default_str();
  app.add_option("--plain-share", options.fit.plain_share,
                 "what of the metric is not Fisher information")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of what is drawn at random")
      ->capture_default_str();
  app.add_option("--threads", options.threads, "threads (0: all CPUs)")
      ->capture_default_str();
  app.add_option("--isa", options.isa, "ref, avx2 or avx512 (default: best)");
  CLI11_PARSE(app, argc, argv);

  InitLogging("warn");
  if (const absl::Status status = Run(std::move(options)); !status.ok()) {
    std::fprintf(stderr, "xcache-calibrate: %s\n",
                 std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace xcache

int main(int argc, char** argv) { return xcache::Main(argc, argv); }
