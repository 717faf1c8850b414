// The device operations on a GPU: launches of the kernels, streams and memory;
// and what the plugin library exports.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <optional>

#include "engine/cuda/errors.h"
#include "engine/cuda/gemm.h"
#include "engine/cuda/kernels.cuh"
#include "engine/device/ops.h"

namespace xcache::cuda {
namespace {

class CudaOps final : public DeviceOps {
 public:
  explicit CudaOps(int ordinal) : ordinal_(ordinal) {
    SetDevice();
    for (cudaStream_t& stream : streams_) {
      Check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
            "cudaStreamCreate");
    }
    for (cudaEvent_t& event : events_) {
      Check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming),
            "cudaEventCreate");
    }
    gemms_.emplace(errors_);
  }
  ~CudaOps() override {
    SetDevice();
    cudaDeviceSynchronize();
    gemms_.reset();
    for (cudaEvent_t event : events_) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    for (cudaStream_t stream : streams_) {
      if (stream != nullptr) cudaStreamDestroy(stream);
    }
  }

  DeviceInfo info() const override {
    SetDevice();
    DeviceInfo info;
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, ordinal_) == cudaSuccess) {
      std::snprintf(info.name, sizeof(info.name), "%s", properties.name);
      info.capability_major = properties.major;
      info.capability_minor = properties.minor;
      info.has_fused_remat = properties.major >= 8;
      info.has_quantized_gemm = properties.major >= 8;
    }
    info.ordinal = ordinal_;
    (void)cudaMemGetInfo(&info.free_bytes, &info.total_bytes);
    return info;
  }
  const char* error() const override { return errors_.message(); }

  void* Allocate(size_t bytes) override {
    SetDevice();
    void* p = nullptr;
    return Allocated(cudaMalloc(&p, bytes)) ? p : nullptr;
  }
  void Free(void* p) override {
    SetDevice();
    cudaFree(p);
  }
  void* AllocatePinned(size_t bytes) override {
    SetDevice();
    void* p = nullptr;
    return Allocated(cudaHostAlloc(&p, bytes, cudaHostAllocDefault)) ? p
                                                                     : nullptr;
  }
  void FreePinned(void* p) override {
    SetDevice();
    cudaFreeHost(p);
  }

  void CopyToDevice(StreamId stream, void* to, const void* from,
                    size_t bytes) override {
    SetDevice();
    Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, At(stream)),
          "copy to the device");
  }
  void CopyToHost(StreamId stream, void* to, const void* from,
                  size_t bytes) override {
    SetDevice();
    Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, At(stream)),
          "copy to the host");
  }
  void Clear(StreamId stream, void* p, size_t bytes) override {
    SetDevice();
    Check(cudaMemsetAsync(p, 0, bytes, At(stream)), "cudaMemset");
  }

  void Record(StreamId stream, int event) override {
    SetDevice();
    Check(cudaEventRecord(events_[event], At(stream)), "cudaEventRecord");
  }
  void Wait(StreamId stream, int event) override {
    SetDevice();
    Check(cudaStreamWaitEvent(At(stream), events_[event], 0),
          "cudaStreamWaitEvent");
  }
  void WaitForEvent(int event) override {
    SetDevice();
    Check(cudaEventSynchronize(events_[event]), "cudaEventSynchronize");
  }
  void Synchronize(StreamId stream) override {
    SetDevice();
    Check(cudaStreamSynchronize(At(stream)), "cudaStreamSynchronize");
  }

  void Gemm(const GemmArgs& args) override {
    if (Ready(args.num_rows)) gemms_->Run(args, compute());
  }

  void QuantizedGemm(const QuantizedGemmArgs& args) override {
    const int blocks = NumRowTiles(args.num_rows) * NumColumnPanels(args.n);
    if (!Ready(blocks)) return;
    const QuantizedGemmFn kernel = QuantizedGemmKernelOf(args.w.type);
    if (kernel == nullptr)
      return errors_.Fail("quantized_gemm", "no such type");
    kernel<<<blocks, kThreads, 0, compute()>>>(args);
    CheckLaunch("quantized_gemm");
  }
  void Unpack(const UnpackArgs& args) override {
    if (!Ready(args.num_rows)) return;
    UnpackKernel<<<args.num_rows, kThreads, 0, compute()>>>(args);
    CheckLaunch("unpack");
  }
  void Embed(const EmbedArgs& args) override {
    if (!Ready(args.num_rows)) return;
    EmbedKernel<<<args.num_rows, kThreads, 0, compute()>>>(args);
    CheckLaunch("embed");
  }
  void RmsNorm(const RmsNormArgs& args) override {
    if (!Ready(args.num_rows)) return;
    RmsNormKernel<<<args.num_rows, kThreads, 0, compute()>>>(args);
    CheckLaunch("rms_norm");
  }
  void StoreKv(const StoreKvArgs& args) override {
    if (!Ready(args.num_rows)) return;
    StoreKvKernel<<<args.num_rows, kThreads, 0, compute()>>>(args);
    CheckLaunch("store_kv");
  }
  void Attend(const AttentionArgs& args) override {
    const int blocks = args.num_tasks * args.layout.n_kv_heads;
    if (!Ready(blocks)) return;
    const int shared = static_cast<int>(sizeof(uint16_t)) *
                       AttentionSharedHalves(args.layout.head_dim);
    ForAttentionDim(args.layout.head_dim, [&](auto max_dim) {
      const auto kernel = AttendKernel<decltype(max_dim)::value>;
      // More than a kernel has without asking, for the widest heads.
      if (shared > 48 << 10) {
        Check(cudaFuncSetAttribute(
                  kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
              "shared memory of attention");
      }
      kernel<<<blocks, kThreads, shared, compute()>>>(args);
    });
    CheckLaunch("attend");
    MergeKernel<<<blocks, kThreads, 0, compute()>>>(args);
    CheckLaunch("merge");
  }
  void SiluMul(const SiluMulArgs& args) override {
    if (!Ready(args.num_rows)) return;
    SiluMulKernel<<<args.num_rows, kThreads, 0, compute()>>>(args);
    CheckLaunch("silu_mul");
  }
  void DecodeTokens(const TokenMatrix& matrix,
                    const DecodeArgs& args) override {
    const int blocks = args.num_blocks * NumPieces(matrix.num_channels);
    if (!Ready(blocks)) return;
    DecodeTokensKernel<<<blocks, kThreads, 0, compute()>>>(matrix, args);
    CheckLaunch("decode_tokens");
  }
  void DecodeChannels(const ChannelMatrix& matrix,
                      const DecodeArgs& args) override {
    const int parts = (matrix.num_channels + kThreads - 1) / kThreads;
    const int blocks = args.num_blocks * kOctets * parts;
    if (!Ready(blocks)) return;
    DecodeChannelsKernel<<<blocks, kThreads, 0, compute()>>>(matrix, args);
    CheckLaunch("decode_channels");
  }
  void ScaleSums(const ScaleSumsArgs& args) override {
    const int rows = args.num_blocks * kBlockTokens;
    if (!Ready(rows)) return;
    ScaleSumsKernel<<<rows, kThreads, 0, compute()>>>(args);
    CheckLaunch("scale_sums");
  }
  void RoundSums(const RoundSumsArgs& args) override {
    const int rows = args.num_blocks * kBlockTokens;
    if (!Ready(rows)) return;
    RoundSumsKernel<<<rows, kThreads, 0, compute()>>>(args);
    CheckLaunch("round_sums");
  }
  void FusedRemat(const FusedRematArgs& args) override {
    const int blocks = args.num_blocks * FusedParts(args);
    if (!Ready(blocks)) return;
    FusedRematKernel<<<blocks, kThreads, 0, compute()>>>(args);
    CheckLaunch("fused_remat");
  }
  void StoreFinal(const StoreFinalArgs& args) override {
    const int blocks = args.num_blocks * args.layout.n_kv_heads;
    if (!Ready(blocks)) return;
    StoreFinalKernel<<<blocks, kThreads, 0, compute()>>>(args);
    CheckLaunch("store_final");
  }
  void Transpose(const TransposeArgs& args) override {
    const int blocks = args.num_blocks * NumPieces(args.num_channels);
    if (!Ready(blocks)) return;
    TransposeKernel<<<blocks, kThreads, 0, compute()>>>(args);
    CheckLaunch("transpose");
  }
  void Gather(const GatherArgs& args) override {
    const int rows = args.num_blocks * kBlockTokens;
    if (!Ready(rows)) return;
    GatherKernel<<<rows, kThreads, 0, compute()>>>(args);
    CheckLaunch("gather");
  }
  void ExactProduct(const ExactProductArgs& args) override {
    const int parts = (args.width + kThreads - 1) / kThreads;
    const int blocks = args.num_blocks * parts * kProductRowParts;
    if (!Ready(blocks)) return;
    ExactProductKernel<<<blocks, kThreads, 0, compute()>>>(args);
    CheckLaunch("exact_product");
  }
  void Predict(const PredictArgs& args) override {
    const int rows = args.num_blocks * kBlockTokens;
    if (!Ready(rows)) return;
    PredictKernel<<<rows, kThreads, 0, compute()>>>(args);
    CheckLaunch("predict");
  }
  void Quantize(const QuantizeArgs& args) override {
    const int blocks = args.num_blocks * args.num_units;
    if (!Ready(blocks)) return;
    if (args.fp8) {
      RangesKernel<<<blocks, kThreads, 0, compute()>>>(args);
      CheckLaunch("ranges");
    }
    QuantizeKernel<<<blocks, kThreads, 0, compute()>>>(args);
    CheckLaunch("quantize");
  }

 private:
  void SetDevice() const {
    // Per thread: the engine may be handed from one to another.
    thread_local int current = -1;
    if (current == ordinal_) return;
    if (cudaSetDevice(ordinal_) == cudaSuccess) current = ordinal_;
  }
  cudaStream_t At(StreamId stream) const {
    return streams_[static_cast<int>(stream)];
  }
  cudaStream_t compute() const { return At(StreamId::kCompute); }
  // Whether there is something to launch; sets the thread's device.
  bool Ready(int blocks) const {
    SetDevice();
    return blocks > 0 && !errors_.failed();
  }
  bool Allocated(cudaError_t result) {
    if (result == cudaSuccess) return true;
    (void)cudaGetLastError();  // memory that is not there is no failure
    return false;
  }
  void Check(cudaError_t result, const char* what) {
    errors_.Check(result, what);
  }
  void CheckLaunch(const char* what) { Check(cudaGetLastError(), what); }

  const int ordinal_;
  cudaStream_t streams_[kNumStreams] = {};
  cudaEvent_t events_[kNumEvents] = {};
  Errors errors_;
  std::optional<Gemms> gemms_;  // made once the device is set
};

}  // namespace
}  // namespace xcache::cuda

extern "C" __attribute__((visibility("default"))) xcache::cuda::DeviceOps*
xcache_open_cuda(int version, int ordinal, char* error, size_t error_bytes) {
  using xcache::cuda::CudaOps;
  using xcache::cuda::kDeviceOpsVersion;
  const auto fail = [&](const char* format, auto... values) {
    std::snprintf(error, error_bytes, format, values...);
    return nullptr;
  };
  if (version != kDeviceOpsVersion) {
    return fail("expected interface version %d, found %d", version,
                kDeviceOpsVersion);
  }
  int devices = 0;
  const cudaError_t result = cudaGetDeviceCount(&devices);
  if (result != cudaSuccess) {
    return fail("expected a CUDA driver and device: %s",
                cudaGetErrorString(result));
  }
  if (ordinal < 0 || ordinal >= devices) {
    return fail("expected device %d, found %d devices", ordinal, devices);
  }
  auto* ops = new CudaOps(ordinal);
  if (ops->error() != nullptr) {
    std::snprintf(error, error_bytes, "device %d: %s", ordinal, ops->error());
    delete ops;
    return nullptr;
  }
  return ops;
}
