// xcache-bench: how fast an engine prefills, decodes and resumes.
//   xcache-bench --model M --prefill 512,4096 --decode 64 --depth 0,4096 --json
//   xcache-bench --model M --resume 1000,4000,7000 --codec C --json
//   xcache-bench --model M --remat-tokens 2048 --json      (every codec)
#include "tests/bench/xcache_bench.h"

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "engine/base/file.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/engine_factory.h"
#include "engine/kernels/isa.h"
#include "engine/model/model.h"
#include "engine/model/tokenizer.h"
#include "engine/xcache/codec.h"

namespace xcache::bench {
namespace {

struct Options {
  std::string model;
  std::string codec = "xquant-gqa:bits=4";
  EngineOptions engine;
  std::vector<int> prefill;
  std::vector<int> depth;
  std::vector<int> resume;
  std::vector<int> remat;
  std::vector<std::string> remat_codecs;
  std::vector<int> batch = {1};
  std::vector<int> rows = {1};
  int decode = 64;
  int repeat = 1;
  std::string text;
  std::string store_dir;
  bool json = false;
};

absl::Status BenchRemats(Engine& engine, const Options& o,
                         const Prompts& prompts, Report& report) {
  if (o.remat.empty()) return absl::OkStatus();
  const int threads =
      o.engine.num_threads > 0
          ? o.engine.num_threads
          : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  XC_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa(o.engine.isa));
  const MachineLimits limits = MeasureMachineLimits(isa, threads);
  report.Add({{"engine", "xcache"},
              {"what", "limits"},
              {"isa", IsaName(isa)},
              {"threads", threads},
              {"giga_multiply_adds_per_s_fp32", limits.fp32},
              {"giga_multiply_adds_per_s_int8", limits.int8}});
  const std::vector<std::string> specs =
      o.remat_codecs.empty() ? CodecNamesWithoutCalibration() : o.remat_codecs;
  for (const std::string& spec : specs) {
    XC_ASSIGN_OR_RETURN(const CodecHandle* codec, engine.OpenCodec(spec, {}));
    for (int i = 0; i < o.repeat; ++i) {
      for (int n : o.remat) {
        XC_RETURN_IF_ERROR(
            BenchRemat(engine, *codec, prompts, n, threads, limits, report));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Run(const Options& o) {
  XC_ASSIGN_OR_RETURN(std::shared_ptr<const Model> model, Model::Load(o.model));
  std::vector<TokenId> text;
  if (!o.text.empty()) {
    constexpr size_t kMaxTextBytes = size_t{64} << 20;
    XC_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Create(model->gguf()));
    XC_ASSIGN_OR_RETURN(const std::string bytes,
                        ReadSmallFile(o.text, kMaxTextBytes));
    XC_ASSIGN_OR_RETURN(text, tokenizer->Encode(bytes));
  }
  XC_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine,
                      CreateEngine(std::move(model), o.engine, {}));
  const Prompts prompts(std::move(text), engine->info().vocab_size);
  XC_ASSIGN_OR_RETURN(const CodecHandle* codec, engine->OpenCodec(o.codec, {}));
  Report report(o.json);
  const int threads = o.engine.num_threads;
  {
    // Warm-up: page in the weights, grow the buffers.
    XC_ASSIGN_OR_RETURN(auto sequence, engine->NewSequence(*codec, {}, {}));
    XC_RETURN_IF_ERROR(
        Prefill(*engine, *sequence, prompts.Take(kBlockTokens)).status());
  }
  for (int i = 0; i < o.repeat; ++i) {
    for (int n : o.prefill) {
      XC_RETURN_IF_ERROR(
          BenchPrefill(*engine, *codec, prompts, n, threads, report));
    }
    for (int depth : o.depth) {
      for (int batch : o.batch) {
        for (int rows : o.rows) {
          XC_RETURN_IF_ERROR(BenchDecode(*engine, *codec, prompts, depth,
                                         o.decode, batch, rows, threads,
                                         report));
        }
      }
    }
    for (int n : o.resume) {
      XC_RETURN_IF_ERROR(BenchResume(*engine, *codec, prompts, n, threads,
                                     o.store_dir, report));
    }
  }
  return BenchRemats(*engine, o, prompts, report);
}

int Main(int argc, char** argv) {
  CLI::App app("Measures prefill, decode and resume of the XCache engine.");
  Options o;
  app.add_option("--model", o.model, "GGUF file")->required();
  app.add_option("--codec", o.codec, "codec spec")->capture_default_str();
  app.add_option("--threads", o.engine.num_threads, "0: one for each CPU");
  app.add_option("--device", o.engine.device, "cpu, cuda, cuda:N or auto");
  app.add_option("--weights", o.engine.weights,
                 "on a GPU: auto, bf16 or quantized");
  app.add_option("--isa", o.engine.isa, "ref, avx2 or avx512; default: best");
  app.add_option("--profile-dir", o.engine.profile_dir,
                 "where profiles are kept");
  app.add_option("--text", o.text,
                 "file that prompts are made of; default: ids spread over the "
                 "vocabulary, which xquant-tc was not made for");
  app.add_option("--prefill", o.prefill, "prompt lengths")->delimiter(',');
  app.add_option("--depth", o.depth, "decode after that many tokens")
      ->delimiter(',');
  app.add_option("--decode", o.decode, "tokens to decode at each depth")
      ->capture_default_str();
  app.add_option("--batch", o.batch, "sequences decoded together")
      ->delimiter(',');
  app.add_option("--rows", o.rows,
                 "rows of each of them in a step, as with a draft of one less")
      ->delimiter(',');
  app.add_option("--resume", o.resume, "conversation lengths")->delimiter(',');
  app.add_option("--remat-tokens", o.remat,
                 "rematerialize that many tokens with every codec, next to "
                 "prefill and to what the machine can multiply")
      ->delimiter(',');
  app.add_option(
      "--remat-codec", o.remat_codecs,
      "codec spec for --remat-tokens; may be repeated; default: every "
      "codec, at its defaults");
  app.add_option("--repeat", o.repeat, "runs of everything")
      ->capture_default_str();
  app.add_option("--store-dir", o.store_dir,
                 "folder for --resume, emptied; default: a temporary one");
  app.add_flag("--json", o.json, "one JSON object a line");
  CLI11_PARSE(app, argc, argv);
  InitLogging("warn");
  for (const std::vector<int>* counts :
       {&o.prefill, &o.resume, &o.remat, &o.batch, &o.rows}) {
    for (int n : *counts) {
      if (n < 1) {
        std::cerr << "xcache-bench: lengths must be at least 1, not " << n
                  << "\n";
        return 1;
      }
    }
  }
  const bool own_dir = o.store_dir.empty();
  if (own_dir) {
    std::string path =
        (std::filesystem::temp_directory_path() / "xcache-bench-XXXXXX")
            .string();
    if (mkdtemp(path.data()) == nullptr) {
      std::cerr << "xcache-bench: cannot make " << path << "\n";
      return 1;
    }
    o.store_dir = path;
  }
  const absl::Status status = Run(o);
  if (own_dir) {
    std::error_code ignored;
    std::filesystem::remove_all(o.store_dir, ignored);
  }
  if (!status.ok()) {
    std::cerr << "xcache-bench: " << status.message() << "\n";
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace xcache::bench

int main(int argc, char** argv) { return xcache::bench::Main(argc, argv); }
