#include "engine/engine_factory.h"

#include <sched.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/cpu/engine.h"
#include "engine/cuda/plugin.h"
#include "engine/device/engine.h"

namespace xcache {
namespace {

constexpr int kMaxThreads = 1024;

// CPUs that this process may run on.
int UsableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return std::max(1, CPU_COUNT(&set));
  }
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// The number of the GPU that `device` names, "cuda" or "cuda:N"; none for
// others.
std::optional<int> GpuOf(const std::string& device) {
  if (device == "cuda") return 0;
  constexpr std::string_view kPrefix = "cuda:";
  if (device.rfind(kPrefix, 0) != 0) return std::nullopt;
  const char* first = device.data() + kPrefix.size();
  const char* last = device.data() + device.size();
  int ordinal = -1;
  const auto [end, error] = std::from_chars(first, last, ordinal);
  if (error != std::errc() || end != last || ordinal < 0) return std::nullopt;
  return ordinal;
}

void ReleaseUploaded(const Model& model) {
  model.Release(model.token_embd());
  model.Release(model.output());
  for (int i = 0; i < model.hparams().num_layers; ++i) {
    const LayerTensors& layer = model.layer(i);
    for (const TensorView* tensor :
         {&layer.wq, &layer.wo, &layer.w_gate, &layer.w_up, &layer.w_down}) {
      model.Release(*tensor);
    }
  }
}

absl::StatusOr<std::unique_ptr<Engine>> CreateOnGpu(
    const std::shared_ptr<const Model>& model, int ordinal, Isa isa,
    int threads, const EngineOptions& options, const ProgressFn& progress) {
  XC_ASSIGN_OR_RETURN(std::shared_ptr<cuda::DeviceOps> ops,
                      cuda::OpenCudaDevice(ordinal));
  cuda::DeviceEngineOptions device;
  device.isa = isa;
  device.num_threads = threads;
  device.profile_dir = options.profile_dir;
  device.pool_bytes = options.device_memory_bytes;
  device.weights = *cuda::ParseWeightPolicy(options.weights);
  XC_ASSIGN_OR_RETURN(
      std::unique_ptr<Engine> engine,
      cuda::DeviceEngine::Create(model, std::move(ops), device, progress));
  if (options.last_of_model) ReleaseUploaded(*model);
  return engine;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> CreateEngine(
    std::shared_ptr<const Model> model, const EngineOptions& options,
    const ProgressFn& progress) {
  const std::optional<int> gpu = GpuOf(options.device);
  if (options.device != "cpu" && options.device != "auto" && !gpu) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown device '", options.device,
                     "'; known: cpu, cuda, cuda:N, auto"));
  }
  if (!cuda::ParseWeightPolicy(options.weights)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "weights must be auto, bf16 or quantized, is '", options.weights, "'"));
  }
  if (options.num_threads < 0 || options.num_threads > kMaxThreads) {
    return absl::InvalidArgumentError(absl::StrCat(
        "threads must be in [0, ", kMaxThreads, "], is ", options.num_threads));
  }
  XC_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa(options.isa));
  const int threads =
      options.num_threads > 0 ? options.num_threads : UsableCpus();
  if (gpu) {
    return CreateOnGpu(model, *gpu, isa, threads, options, progress);
  }
  if (options.device == "auto") {
    auto engine = CreateOnGpu(model, 0, isa, threads, options, progress);
    if (engine.ok()) return engine;
    XC_LOG_INFO("no GPU is used, the engine runs on the CPU", "reason={}",
                LogValue(std::string(engine.status().message())));
  }
  const PackOptions pack = {.release_packed = options.last_of_model,
                            .cache_dir = options.weights_cache_dir};
  return CpuEngine::Create(std::move(model), isa, threads, options.profile_dir,
                           pack, progress);
}

}  // namespace xcache
