// xcache-gpu-bench: what a GPU gives to resume and decode, every way side by
// side in one run. One JSON object a line.
//   xcache-gpu-bench --shape llama-3.1-8b --codec xquant-gqa:bits=4
//     --resume 4096,32768 --depth 3072 --batch 1,8,64 --capacity 8192
// Links neither RocksDB nor gRPC: pages come from host memory.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/cuda/plugin.h"
#include "engine/device/engine.h"
#include "engine/device/memory.h"
#include "engine/emulation/host_ops.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/page.h"
#include "nlohmann/json.hpp"
#include "tests/bench/gpu/remat_kernels.h"
#include "tests/bench/gpu/synthetic_model.h"
#include "tests/bench/gpu/weight_products.h"
#include "tests/bench/xcache_bench.h"

namespace xcache::bench {
namespace {

using cuda::DeviceOps;
using cuda::StreamId;
using Row = nlohmann::ordered_json;

struct Options {
  std::string shape = "llama-3.1-8b";
  std::string model;  // a GGUF file instead of a shape
  std::string device = "cuda:0";
  std::string profile_dir;
  std::vector<std::string> codecs = {"kv-fp16", "xquant-gqa:bits=4"};
  std::vector<int> resume;
  std::vector<int> depth;
  std::vector<int> batch = {1};
  std::vector<int> capacity;
  int decode_steps = 16;
  int threads = 8;
  int repeat = 3;
  double recompute_seconds = 60.0;  // longest recomputation
  cuda::RematKernel remat_kernel = cuda::RematKernel::kFused;
  std::string weights = "auto";
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Bench {
 public:
  Bench(const Options& options, std::shared_ptr<const Model> model,
        std::shared_ptr<DeviceOps> ops)
      : options_(options),
        model_(std::move(model)),
        ops_(std::move(ops)),
        report_(true) {}

  absl::Status Run() {
    XC_RETURN_IF_ERROR(Limits());
    for (const std::string& spec : options_.codecs) {
      // Anew for each codec: the one before has filled the pool.
      XC_RETURN_IF_ERROR(MakeEngine());
      if (&spec == &options_.codecs.front()) XC_RETURN_IF_ERROR(Recompute());
      XC_ASSIGN_OR_RETURN(codec_, engine_->OpenCodec(spec, {}));
      XC_RETURN_IF_ERROR(MakePagePayloads());
      if (spec != "kv-fp16") XC_RETURN_IF_ERROR(RematKernels(spec));
      for (RematPolicy policy : {RematPolicy::kResume, RematPolicy::kStep}) {
        // K/V itself is never made anew.
        if (policy == RematPolicy::kStep && spec == "kv-fp16") continue;
        policy_ = policy;
        for (int n : options_.resume) XC_RETURN_IF_ERROR(Resume(n));
        for (int depth : options_.depth) {
          for (int batch : options_.batch) {
            XC_RETURN_IF_ERROR(Decode(depth, batch));
          }
        }
        for (int n : options_.capacity) XC_RETURN_IF_ERROR(Capacity(n));
      }
    }
    return absl::OkStatus();
  }

 private:
  void Add(Row row) {
    row["device"] = ops_->info().name;
    row["model"] = model_->hparams().name;
    report_.Add(row);
  }

  absl::Status MakeEngine() {
    codec_ = nullptr;
    engine_.reset();
    cuda::DeviceEngineOptions options;
    options.isa = *ChooseIsa("");
    options.num_threads = options_.threads;
    options.profile_dir = options_.profile_dir;
    options.remat_kernel = options_.remat_kernel;
    options.weights = *cuda::ParseWeightPolicy(options_.weights);
    const Timer timer;
    XC_ASSIGN_OR_RETURN(engine_,
                        cuda::DeviceEngine::Create(model_, ops_, options, {}));
    Add({{"what", "load"},
         {"ms", timer.ms()},
         {"weights", options_.weights},
         {"numerics_id", engine_->info().numerics_id},
         {"weight_bytes", engine_->info().weight_bytes}});
    return absl::OkStatus();
  }

  // What copies and products reach, to judge the rest by.
  absl::Status Limits() {
    cuda::PinnedMemory pinned(*ops_);
    cuda::DeviceMemory device(*ops_);
    const size_t bytes = CopyBytes();
    XC_RETURN_IF_ERROR(pinned.Reserve(bytes));
    XC_RETURN_IF_ERROR(device.Reserve(bytes));
    std::fill_n(pinned.as<uint8_t>(), bytes, uint8_t{0});
    const auto timed = [&](const std::function<void()>& work) {
      std::vector<double> ms;
      for (int i = 0; i < options_.repeat + 1; ++i) {
        const Timer timer;
        work();
        ops_->Synchronize(StreamId::kCompute);
        if (i > 0) ms.push_back(timer.ms());
      }
      return Median(ms);
    };
    const double copy = timed([&] {
      ops_->CopyToDevice(StreamId::kCompute, device.as<void>(),
                         pinned.as<void>(), bytes);
    });
    Add({{"what", "copy from pinned memory"},
         {"bytes", bytes},
         {"ms", copy},
         {"gb_per_s", static_cast<double>(bytes) / copy / 1e6}});
    // The engine's own product: tiles of 64 rows.
    const HyperParams& h = model_->hparams();
    cuda::GemmArgs gemm;
    gemm.num_rows = ops_->info().capability_major > 0 ? 2048 : 64;
    gemm.n = h.d_ff;
    gemm.k = h.d_model;
    gemm.out_stride = gemm.n;
    const auto elements = [](int a, int b) {
      return static_cast<size_t>(a) * static_cast<size_t>(b);
    };
    cuda::DeviceMemory a(*ops_), w(*ops_), out(*ops_);
    XC_RETURN_IF_ERROR(a.Reserve(2 * elements(gemm.num_rows, gemm.k)));
    XC_RETURN_IF_ERROR(w.Reserve(2 * elements(gemm.n, gemm.k)));
    XC_RETURN_IF_ERROR(out.Reserve(4 * elements(gemm.num_rows, gemm.n)));
    ops_->Clear(StreamId::kCompute, a.as<void>(), a.bytes());
    ops_->Clear(StreamId::kCompute, w.as<void>(), w.bytes());
    gemm.a = a.as<uint16_t>();
    gemm.w = w.as<uint16_t>();
    gemm.out = out.as<float>();
    const double product = timed([&] { ops_->Gemm(gemm); });
    Add({{"what", "product in tiles of 64 rows"},
         {"rows", gemm.num_rows},
         {"n", gemm.n},
         {"k", gemm.k},
         {"ms", product},
         {"tflop_per_s",
          2.0 * gemm.num_rows * gemm.n * gemm.k / product / 1e9}});
    XC_ASSIGN_OR_RETURN(const std::vector<Row> products,
                        MeasureWeightProducts(h, *ops_, options_.repeat));
    for (const Row& row : products) Add(row);
    return Device();
  }

  // Bytes of one copy: large enough for full speed, and small beside memory.
  size_t CopyBytes() const {
    return std::min(size_t{1} << 30, ops_->info().free_bytes / 8);
  }

  absl::Status Device() const {
    return ops_->error() == nullptr ? absl::OkStatus()
                                    : absl::InternalError(ops_->error());
  }

  // Seals two blocks and keeps their payloads: every later page is a copy.
  absl::Status MakePagePayloads() {
    XC_ASSIGN_OR_RETURN(auto sequence, engine_->NewSequence(*codec_, {}, {}));
    const std::vector<TokenId> tokens =
        Prompts({}, model_->hparams().vocab_size).Take(2 * kBlockTokens);
    XC_RETURN_IF_ERROR(Prefill(*engine_, *sequence, tokens).status());
    sealed_.clear();
    for (SealedBlock& block : sequence->TakeSealed()) {
      sealed_.push_back(std::move(block.page));
    }
    return absl::OkStatus();
  }

  // Pages of a conversation of `n` tokens.
  std::vector<std::string> Pages(int n) {
    std::vector<std::string> pages;
    for (int b = 0; b < n / kBlockTokens; ++b) {
      std::string& from = sealed_[b == 0 ? 0 : 1];
      const std::span<const uint8_t> payload = PagePayload(from);
      std::string page =
          BeginPage(codec_->cache_fp(), b,
                    TokensOf(n).subspan(static_cast<size_t>(b) * kBlockTokens,
                                        kBlockTokens),
                    payload.size());
      std::copy(payload.begin(), payload.end(), PagePayload(page).begin());
      FinishPage(page);
      pages.push_back(std::move(page));
    }
    return pages;
  }
  std::span<const TokenId> TokensOf(int n) {
    if (static_cast<int>(tokens_.size()) < n) {
      tokens_ = Prompts({}, model_->hparams().vocab_size).Take(n);
    }
    return std::span(tokens_).first(static_cast<size_t>(n));
  }

  absl::StatusOr<std::vector<KvBlockRef>> Blocks(
      const std::vector<std::string>& pages) {
    std::vector<RematJob> jobs(pages.size());
    const auto tokens = TokensOf(static_cast<int>(pages.size()) * kBlockTokens);
    for (size_t i = 0; i < jobs.size(); ++i) {
      jobs[i] = {static_cast<int64_t>(i), pages[i],
                 tokens.subspan(i * kBlockTokens, kBlockTokens), policy_};
    }
    std::vector<KvBlockRef> blocks;
    for (auto& block : engine_->Remat(*codec_, jobs)) {
      XC_RETURN_IF_ERROR(block.status());
      blocks.push_back(*std::move(block));
    }
    return blocks;
  }

  absl::Status Recompute() {
    XC_ASSIGN_OR_RETURN(const CodecHandle* codec,
                        engine_->OpenCodec("kv-fp16", {}));
    double last_ms = 0.0;
    int last = 0;
    for (int n : options_.resume) {
      // Not begun where it would take too long: at least linear in n.
      if (last > 0 && last_ms * n / last > 1e3 * options_.recompute_seconds) {
        Add({{"what", "recompute"}, {"tokens", n}, {"skipped", "too long"}});
        continue;
      }
      XC_ASSIGN_OR_RETURN(auto sequence, engine_->NewSequence(*codec, {}, {}));
      const Timer timer;
      XC_RETURN_IF_ERROR(Prefill(*engine_, *sequence, TokensOf(n)).status());
      last_ms = timer.ms();
      last = n;
      Add({{"what", "recompute"}, {"tokens", n}, {"ms", last_ms}});
    }
    // The K/V of so many tokens, copied and nothing else.
    for (int n : options_.resume) {
      const size_t bytes =
          static_cast<size_t>(n) *
          static_cast<size_t>(engine_->info().kv_fp16_bytes_per_token);
      const size_t run = std::min(bytes, CopyBytes());
      cuda::PinnedMemory pinned(*ops_);
      cuda::DeviceMemory device(*ops_);
      XC_RETURN_IF_ERROR(pinned.Reserve(run));
      XC_RETURN_IF_ERROR(device.Reserve(run));
      std::fill_n(pinned.as<uint8_t>(), run, uint8_t{0});
      const Timer timer;
      for (size_t at = 0; at < bytes; at += run) {
        ops_->CopyToDevice(StreamId::kCompute, device.as<void>(),
                           pinned.as<void>(), std::min(run, bytes - at));
      }
      ops_->Synchronize(StreamId::kCompute);
      Add({{"what", "copy K/V"},
           {"tokens", n},
           {"bytes", bytes},
           {"ms", timer.ms()}});
    }
    return Device();
  }

  absl::Status RematKernels(const std::string& spec) {
    RematKernelsOptions options;
    options.profile_dir = options_.profile_dir;
    options.threads = options_.threads;
    options.repeat = options_.repeat;
    XC_ASSIGN_OR_RETURN(const std::vector<Row> rows,
                        MeasureRematKernels(model_, *ops_, spec,
                                            PagePayload(sealed_[1]), options));
    for (const Row& row : rows) Add(row);
    return absl::OkStatus();
  }

  absl::Status Resume(int n) {
    const std::vector<std::string> pages = Pages(n);
    size_t bytes = 0;
    for (const std::string& page : pages) bytes += page.size();
    std::vector<double> ms;
    for (int i = 0; i < options_.repeat + 1; ++i) {
      const Timer timer;
      XC_RETURN_IF_ERROR(Blocks(pages).status());
      if (i > 0) ms.push_back(timer.ms());
    }
    Add({{"what", "resume"},
         {"codec", codec_->spec()},
         {"policy", RematPolicyName(policy_)},
         {"remat_kernel", RematKernelName(options_.remat_kernel)},
         {"tokens", n},
         {"page_bytes", bytes},
         {"ms", Median(ms)},
         {"page_gb_per_s", static_cast<double>(bytes) / Median(ms) / 1e6}});
    return absl::OkStatus();
  }

  absl::Status Decode(int depth, int batch) {
    const std::vector<std::string> pages = Pages(depth);
    std::vector<std::unique_ptr<Sequence>> sequences;
    for (int i = 0; i < batch; ++i) {
      // Blocks of its own: shared ones would be read from the cache.
      auto blocks = Blocks(pages);
      absl::Status status = blocks.status();
      if (status.ok()) {
        auto sequence =
            engine_->NewSequence(*codec_, TokensOf(depth), *blocks, policy_);
        status = sequence.status();
        if (status.ok()) sequences.push_back(*std::move(sequence));
      }
      if (status.code() == absl::StatusCode::kResourceExhausted) {
        Add({{"what", "decode"},
             {"codec", codec_->spec()},
             {"policy", RematPolicyName(policy_)},
             {"depth", depth},
             {"batch", batch},
             {"skipped", "does not fit"}});
        return absl::OkStatus();
      }
      XC_RETURN_IF_ERROR(status);
    }
    const std::vector<TokenId> token = {7};
    std::vector<double> ms;
    for (int t = 0; t < options_.decode_steps + 2; ++t) {
      std::vector<StepItem> items(sequences.size());
      for (size_t i = 0; i < items.size(); ++i) {
        items[i].sequence = sequences[i].get();
        items[i].tokens = token;
        items[i].logits_mode = LogitsMode::kLast;
      }
      const Timer timer;
      XC_RETURN_IF_ERROR(engine_->Step(items));
      if (t >= 2) ms.push_back(timer.ms());
    }
    Add({{"what", "decode"},
         {"codec", codec_->spec()},
         {"policy", RematPolicyName(policy_)},
         {"remat_kernel", RematKernelName(options_.remat_kernel)},
         {"depth", depth},
         {"batch", batch},
         {"ms", Median(ms)},
         {"tokens_per_s", batch / Median(ms) * 1e3}});
    return absl::OkStatus();
  }

  // Sessions of `n` tokens until the pool is full.
  absl::Status Capacity(int n) {
    const std::vector<std::string> pages = Pages(n);
    std::vector<std::vector<KvBlockRef>> sessions;
    absl::Status status;
    while (status.ok()) {
      auto blocks = Blocks(pages);
      status = blocks.status();
      if (status.ok()) sessions.push_back(*std::move(blocks));
    }
    if (status.code() != absl::StatusCode::kResourceExhausted) return status;
    const auto& pool = static_cast<cuda::DeviceEngine&>(*engine_).pool();
    Add({{"what", "capacity"},
         {"codec", codec_->spec()},
         {"policy", RematPolicyName(policy_)},
         {"tokens", n},
         {"sessions", sessions.size()},
         {"pool_bytes", pool.cap_bytes()},
         {"sessions_per_80_gib", static_cast<double>(sessions.size()) *
                                     (80.0 * (1u << 30)) /
                                     static_cast<double>(pool.cap_bytes())}});
    return absl::OkStatus();
  }

  const Options& options_;
  const std::shared_ptr<const Model> model_;
  const std::shared_ptr<DeviceOps> ops_;
  Report report_;
  RematPolicy policy_ = RematPolicy::kResume;
  std::unique_ptr<Engine> engine_;
  const CodecHandle* codec_ = nullptr;
  std::vector<std::string> sealed_;  // pages of blocks 0 and 1
  std::vector<TokenId> tokens_;
};

absl::StatusOr<std::shared_ptr<DeviceOps>> Open(const std::string& device) {
  if (device == "emulation") {
    cuda::HostOpsOptions options;
    options.memory_bytes = size_t{128} << 20;
    return std::shared_ptr<DeviceOps>(cuda::MakeHostOps(options));
  }
  int ordinal = 0;
  if (device != "cuda" &&
      std::sscanf(device.c_str(), "cuda:%d", &ordinal) != 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "device: expected cuda, cuda:N or emulation, found '", device, "'"));
  }
  return cuda::OpenCudaDevice(ordinal);
}

absl::Status WriteSyntheticProfiles(const Model& model,
                                    const std::vector<std::string>& codecs,
                                    const std::string& dir) {
  for (const std::string& codec : codecs) {
    XC_ASSIGN_OR_RETURN(const CodecSpec spec, CodecSpec::Parse(codec));
    XC_ASSIGN_OR_RETURN(const ProfileKind kind, ProfileOf(spec));
    XC_RETURN_IF_ERROR(WriteSyntheticProfile(model, kind, dir));
  }
  return absl::OkStatus();
}

absl::Status Main(Options options) {
  XC_ASSIGN_OR_RETURN(std::shared_ptr<DeviceOps> ops, Open(options.device));
  std::shared_ptr<const Model> model;
  if (!options.model.empty()) {
    XC_ASSIGN_OR_RETURN(model, Model::Load(options.model));
  } else {
    XC_ASSIGN_OR_RETURN(model, MakeSyntheticModel(options.shape, 1));
  }
  std::string own_dir;
  if (options.profile_dir.empty()) {
    own_dir =
        (std::filesystem::temp_directory_path() / "xcache-gpu-XXXXXX").string();
    if (mkdtemp(own_dir.data()) == nullptr) {
      return absl::InternalError(absl::StrCat("cannot make ", own_dir));
    }
    options.profile_dir = own_dir;
  }
  absl::Status status;
  if (options.model.empty()) {
    status =
        WriteSyntheticProfiles(*model, options.codecs, options.profile_dir);
  }
  if (status.ok()) status = Bench(options, model, ops).Run();
  if (!own_dir.empty()) {
    std::error_code ignored;
    std::filesystem::remove_all(own_dir, ignored);
  }
  return status;
}

}  // namespace
}  // namespace xcache::bench

int main(int argc, char** argv) {
  using xcache::bench::RematKernelName;
  using xcache::cuda::RematKernel;
  CLI::App app("Measures the XCache engine on a GPU.");
  xcache::bench::Options o;
  app.add_option("--shape", o.shape, "synthetic model")->capture_default_str();
  app.add_option("--model", o.model, "GGUF file, instead of a shape");
  app.add_option("--device", o.device,
                 "cuda, cuda:N; emulation: to try this program, not to measure")
      ->capture_default_str();
  app.add_option("--profile-dir", o.profile_dir, "where profiles are kept");
  app.add_option("--codec", o.codecs, "codec specs, separated by ';'")
      ->delimiter(';');
  app.add_option("--resume", o.resume, "conversation lengths")->delimiter(',');
  app.add_option("--depth", o.depth, "decode after that many tokens")
      ->delimiter(',');
  app.add_option("--batch", o.batch, "sequences decoded together")
      ->delimiter(',');
  app.add_option("--capacity", o.capacity, "fill memory with such sessions")
      ->delimiter(',');
  app.add_option("--steps", o.decode_steps)->capture_default_str();
  app.add_option("--threads", o.threads)->capture_default_str();
  app.add_option("--repeat", o.repeat)->capture_default_str();
  app.add_option("--recompute-seconds", o.recompute_seconds,
                 "recomputations that would take longer are left out")
      ->capture_default_str();
  app.add_option("--remat-kernel", o.remat_kernel,
                 "of resume and decode: fused or two-step; both are measured "
                 "alone in each run")
      ->transform(CLI::CheckedTransformer(std::map<std::string, RematKernel>{
          {RematKernelName(RematKernel::kFused), RematKernel::kFused},
          {RematKernelName(RematKernel::kTwoStep), RematKernel::kTwoStep}}));
  app.add_option("--weights", o.weights,
                 "of resume and decode: auto, bf16 or quantized; products are "
                 "measured both ways in each run")
      ->check(CLI::IsMember({"auto", "bf16", "quantized"}))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  xcache::InitLogging("warn");
  const absl::Status status = xcache::bench::Main(o);
  if (!status.ok()) {
    std::cerr << "xcache-gpu-bench: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
