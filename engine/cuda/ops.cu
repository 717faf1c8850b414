// The device operations on a GPU: launches of the kernel bodies, products by
// cuBLASLt, streams and memory. The one file of the plugin library.
//
// Products: rows are computed in tiles of 64, as a batch of equal products that
// share their weights, by one algorithm chosen once for each shape, for a batch
// of one and without split-K. So that a row's result is meant not to depend on
// how many rows there are; the gpu tests check that it does not.
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "engine/device/kernels/attention.h"
#include "engine/device/kernels/cross_layer.h"
#include "engine/device/kernels/dequantize.h"
#include "engine/device/kernels/fused_remat.h"
#include "engine/device/kernels/quantize.h"
#include "engine/device/kernels/quantized_weights.h"
#include "engine/device/kernels/rows.h"
#include "engine/device/kernels/thread_block.h"
#include "engine/device/ops.h"

namespace xcache::cuda {
namespace {

extern __shared__ uint4 dynamic_shared[];

__device__ int BlockIndex() { return static_cast<int>(blockIdx.x); }

__global__ void __launch_bounds__(kThreads) EmbedKernel(EmbedArgs args) {
  DeviceBlock block;
  EmbedRow(block, args, BlockIndex());
}
// Neighbouring blocks of threads share a panel of the matrix.
template <WeightType kType>
__global__ void __launch_bounds__(kThreads)
    QuantizedGemmKernel(QuantizedGemmArgs args) {
  __shared__ QuantizedShared shared;
  const int tiles = NumRowTiles(args.num_rows);
  DeviceBlock block;
  QuantizedGemmPanel<kType>(block, args, BlockIndex() % tiles,
                            BlockIndex() / tiles, shared);
}
using QuantizedGemmFn = void (*)(QuantizedGemmArgs);
// Null for a type that is none.
QuantizedGemmFn QuantizedGemmKernelOf(WeightType type) {
  switch (type) {
    case WeightType::kQ4_0:
      return QuantizedGemmKernel<WeightType::kQ4_0>;
    case WeightType::kQ4_1:
      return QuantizedGemmKernel<WeightType::kQ4_1>;
    case WeightType::kQ5_0:
      return QuantizedGemmKernel<WeightType::kQ5_0>;
    case WeightType::kQ5_1:
      return QuantizedGemmKernel<WeightType::kQ5_1>;
    case WeightType::kQ8_0:
      return QuantizedGemmKernel<WeightType::kQ8_0>;
    case WeightType::kQ4_K:
      return QuantizedGemmKernel<WeightType::kQ4_K>;
    case WeightType::kQ5_K:
      return QuantizedGemmKernel<WeightType::kQ5_K>;
    case WeightType::kQ6_K:
      return QuantizedGemmKernel<WeightType::kQ6_K>;
    case WeightType::kBf16:
      break;
  }
  return nullptr;
}
__global__ void __launch_bounds__(kThreads) UnpackKernel(UnpackArgs args) {
  DeviceBlock block;
  UnpackMatrixRow(block, args, BlockIndex());
}
__global__ void __launch_bounds__(kThreads) RmsNormKernel(RmsNormArgs args) {
  __shared__ float shared[kThreads];
  DeviceBlock block;
  RmsNormRow(block, args, BlockIndex(), shared);
}
__global__ void __launch_bounds__(kThreads) StoreKvKernel(StoreKvArgs args) {
  DeviceBlock block;
  StoreKvRow(block, args, BlockIndex());
}
// Three blocks at a time, at the price of some words in local memory.
template <int kMaxDim>
__global__ void __launch_bounds__(kThreads, kMaxDim <= 128 ? 3 : 1)
    AttendKernel(AttentionArgs args) {
  const int heads = args.layout.n_kv_heads;
  DeviceBlock block;
  AttendChunk<kMaxDim>(block, args, BlockIndex() / heads, BlockIndex() % heads,
                       reinterpret_cast<uint16_t*>(dynamic_shared));
}
__global__ void __launch_bounds__(kThreads) MergeKernel(AttentionArgs args) {
  const int heads = args.layout.n_kv_heads;
  DeviceBlock block;
  MergeChunks(block, args, BlockIndex() / heads, BlockIndex() % heads);
}
__global__ void __launch_bounds__(kThreads) SiluMulKernel(SiluMulArgs args) {
  DeviceBlock block;
  SiluMulRow(block, args, BlockIndex());
}
__global__ void __launch_bounds__(kThreads)
    DecodeTokensKernel(TokenMatrix matrix, DecodeArgs args) {
  __shared__ float shared[kPieceFloats];
  const int pieces = NumPieces(matrix.num_channels);
  DeviceBlock block;
  DecodeTokenPiece(block, matrix, args, BlockIndex() / pieces,
                   BlockIndex() % pieces, shared);
}
__global__ void __launch_bounds__(kThreads)
    DecodeChannelsKernel(ChannelMatrix matrix, DecodeArgs args) {
  const int parts = (matrix.num_channels + kThreads - 1) / kThreads;
  DeviceBlock block;
  DecodeChannelPart(block, matrix, args, BlockIndex() / parts / kOctets,
                    BlockIndex() / parts % kOctets, BlockIndex() % parts);
}
// Neighbouring blocks of threads share a panel of the matrix.
__global__ void __launch_bounds__(kThreads)
    FusedRematKernel(FusedRematArgs args) {
  __shared__ FusedShared shared;
  DeviceBlock block;
  FusedRematPart(block, args, BlockIndex() % args.num_blocks,
                 BlockIndex() / args.num_blocks, shared);
}
__global__ void __launch_bounds__(kThreads)
    ScaleSumsKernel(ScaleSumsArgs args) {
  DeviceBlock block;
  ScaleSumsRow(block, args, BlockIndex());
}
__global__ void __launch_bounds__(kThreads)
    RoundSumsKernel(RoundSumsArgs args) {
  DeviceBlock block;
  RoundSumsRow(block, args, BlockIndex());
}
__global__ void __launch_bounds__(kThreads)
    StoreFinalKernel(StoreFinalArgs args) {
  const int heads = args.layout.n_kv_heads;
  DeviceBlock block;
  StoreFinalHead(block, args, BlockIndex() / heads, BlockIndex() % heads);
}

__global__ void __launch_bounds__(kThreads)
    TransposeKernel(TransposeArgs args) {
  __shared__ float shared[kPieceFloats];
  const int pieces = NumPieces(args.num_channels);
  DeviceBlock block;
  TransposePiece(block, args, BlockIndex() / pieces, BlockIndex() % pieces,
                 shared);
}
__global__ void __launch_bounds__(kThreads) GatherKernel(GatherArgs args) {
  DeviceBlock block;
  GatherRow(block, args, BlockIndex());
}
constexpr int kProductRowParts = kBlockTokens / kProductRows;
__global__ void __launch_bounds__(kThreads)
    ExactProductKernel(ExactProductArgs args) {
  __shared__ float shared[kProductRows * kProductDepth];
  const int parts = (args.width + kThreads - 1) / kThreads;
  DeviceBlock block;
  ExactProductPart(block, args, BlockIndex() / kProductRowParts / parts,
                   BlockIndex() / kProductRowParts % parts,
                   BlockIndex() % kProductRowParts, shared);
}
__global__ void __launch_bounds__(kThreads) PredictKernel(PredictArgs args) {
  __shared__ float shared[2 * kDotSums];
  DeviceBlock block;
  PredictRow(block, args, BlockIndex(), shared);
}
__global__ void __launch_bounds__(kThreads) RangesKernel(QuantizeArgs args) {
  __shared__ float shared[2 * kThreads];
  DeviceBlock block;
  UnitRanges(block, args, BlockIndex() / args.num_units,
             BlockIndex() % args.num_units, shared);
}
__global__ void __launch_bounds__(kThreads) QuantizeKernel(QuantizeArgs args) {
  __shared__ uint8_t codes[kMaxTileRows * kThreads];
  DeviceBlock block;
  QuantizeUnit(block, args, BlockIndex() / args.num_units,
               BlockIndex() % args.num_units, codes);
}

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
    CheckLt(cublasLtCreate(&lt_), "cublasLtCreate");
  }
  ~CudaOps() override {
    SetDevice();
    cudaDeviceSynchronize();
    for (auto& [key, plan] : plans_) Destroy(plan);
    if (lt_ != nullptr) cublasLtDestroy(lt_);
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
  const char* error() const override { return failed_ ? error_ : nullptr; }

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

  void Gemm(const GemmArgs& args) override;

  void QuantizedGemm(const QuantizedGemmArgs& args) override {
    const int blocks = NumRowTiles(args.num_rows) * NumColumnPanels(args.n);
    if (!Ready(blocks)) return;
    const QuantizedGemmFn kernel = QuantizedGemmKernelOf(args.w.type);
    if (kernel == nullptr) return Fail("quantized_gemm", "no such type");
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
  // What an algorithm is chosen for: n, k, output stride, type, and the
  // output's alignment, which is less where it is some of a product's columns.
  using GemmShape = std::tuple<int, int, int64_t, int, uint32_t>;
  // How to run a shape for a number of tiles. Kept: making one takes the host
  // longer than a small product takes the device.
  struct GemmPlan {
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t w = nullptr, a = nullptr, out = nullptr;
    cublasLtMatmulAlgo_t algorithm = {};
    int calls = 0;  // of equal numbers of tiles: 1, or all tiles one by one
  };

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
    return blocks > 0 && !failed_;
  }
  bool Allocated(cudaError_t result) {
    if (result == cudaSuccess) return true;
    (void)cudaGetLastError();  // memory that is not there is no failure
    return false;
  }
  void Fail(const char* what, const char* why) {
    if (failed_) return;
    std::snprintf(error_, sizeof(error_), "%s: %s", what, why);
    failed_ = true;
  }
  void Check(cudaError_t result, const char* what) {
    if (result != cudaSuccess) Fail(what, cudaGetErrorString(result));
  }
  void CheckLaunch(const char* what) { Check(cudaGetLastError(), what); }
  bool CheckLt(cublasStatus_t status, const char* what) {
    if (status == CUBLAS_STATUS_SUCCESS) return true;
    Fail(what, cublasLtGetStatusString(status));
    return false;
  }
  // Layout of a column-major matrix, repeated `batch` times at `stride`.
  bool MakeLayout(cublasLtMatrixLayout_t* layout, cudaDataType_t type, int rows,
                  int cols, int64_t ld, int batch, int64_t stride);
  bool MakeLayouts(const GemmShape& shape, int batch, GemmPlan* plan);
  bool ChooseAlgorithm(const GemmShape& shape, cublasLtMatmulAlgo_t* out);
  // Null where it failed.
  const GemmPlan* PlanFor(const GemmShape& shape, int tiles);
  static void Destroy(GemmPlan& plan);
  // Bytes, at most 256: what is assumed of whole buffers.
  static uint32_t AlignmentOf(const void* p) {
    const auto at = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p)) | 256;
    return at & (~at + 1);
  }

  const int ordinal_;
  cudaStream_t streams_[kNumStreams] = {};
  cudaEvent_t events_[kNumEvents] = {};
  cublasLtHandle_t lt_ = nullptr;
  std::map<GemmShape, cublasLtMatmulAlgo_t> algorithms_;
  std::map<std::pair<GemmShape, int>, GemmPlan> plans_;
  bool failed_ = false;
  char error_[256] = {};
};

bool CudaOps::MakeLayout(cublasLtMatrixLayout_t* layout, cudaDataType_t type,
                         int rows, int cols, int64_t ld, int batch,
                         int64_t stride) {
  return CheckLt(cublasLtMatrixLayoutCreate(layout, type,
                                            static_cast<uint64_t>(rows),
                                            static_cast<uint64_t>(cols), ld),
                 "cublasLtMatrixLayoutCreate") &&
         CheckLt(cublasLtMatrixLayoutSetAttribute(
                     *layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                     sizeof(batch)),
                 "batch count") &&
         CheckLt(cublasLtMatrixLayoutSetAttribute(
                     *layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                     &stride, sizeof(stride)),
                 "batch stride");
}

// Column-major: out^T [n, 64] = (w^T [k, n])^T a^T [k, 64]; w is shared by the
// whole batch.
bool CudaOps::MakeLayouts(const GemmShape& shape, int batch, GemmPlan* plan) {
  const auto& [n, k, out_stride, type, alignment] = shape;
  const cudaDataType_t half =
      static_cast<HalfType>(type) == HalfType::kBf16 ? CUDA_R_16BF : CUDA_R_16F;
  const cublasOperation_t transpose = CUBLAS_OP_T;
  return CheckLt(cublasLtMatmulDescCreate(&plan->desc, CUBLAS_COMPUTE_32F,
                                          CUDA_R_32F),
                 "cublasLtMatmulDescCreate") &&
         CheckLt(cublasLtMatmulDescSetAttribute(plan->desc,
                                                CUBLASLT_MATMUL_DESC_TRANSA,
                                                &transpose, sizeof(transpose)),
                 "transposition") &&
         MakeLayout(&plan->w, half, k, n, k, batch, 0) &&
         MakeLayout(&plan->a, half, k, kGemmRows, k, batch,
                    int64_t{kGemmRows} * k) &&
         MakeLayout(&plan->out, CUDA_R_32F, n, kGemmRows, out_stride, batch,
                    kGemmRows * out_stride);
}

void CudaOps::Destroy(GemmPlan& plan) {
  for (cublasLtMatrixLayout_t layout : {plan.w, plan.a, plan.out}) {
    if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
  }
  if (plan.desc != nullptr) cublasLtMatmulDescDestroy(plan.desc);
  plan = GemmPlan();
}

bool CudaOps::ChooseAlgorithm(const GemmShape& shape,
                              cublasLtMatmulAlgo_t* out) {
  const auto known = algorithms_.find(shape);
  if (known != algorithms_.end()) {
    *out = known->second;
    return true;
  }
  // No workspace and no reduction across blocks: every output element is one
  // sum over k, by one block.
  const size_t workspace = 0;
  const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE;
  const uint32_t alignment = std::get<4>(shape);
  GemmPlan one;
  cublasLtMatmulPreference_t preference = nullptr;
  cublasLtMatmulHeuristicResult_t result = {};
  int results = 0;
  const bool ok =
      MakeLayouts(shape, 1, &one) &&
      CheckLt(cublasLtMatmulPreferenceCreate(&preference), "preference") &&
      CheckLt(cublasLtMatmulPreferenceSetAttribute(
                  preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                  &workspace, sizeof(workspace)),
              "workspace") &&
      CheckLt(cublasLtMatmulPreferenceSetAttribute(
                  preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                  &reductions, sizeof(reductions)),
              "reduction scheme") &&
      CheckLt(cublasLtMatmulPreferenceSetAttribute(
                  preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                  &alignment, sizeof(alignment)),
              "alignment") &&
      CheckLt(cublasLtMatmulPreferenceSetAttribute(
                  preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                  &alignment, sizeof(alignment)),
              "alignment") &&
      CheckLt(cublasLtMatmulAlgoGetHeuristic(lt_, one.desc, one.w, one.a,
                                             one.out, one.out, preference, 1,
                                             &result, &results),
              "cublasLtMatmulAlgoGetHeuristic");
  if (preference != nullptr) cublasLtMatmulPreferenceDestroy(preference);
  Destroy(one);
  if (ok && results == 0) Fail("cublasLt", "no algorithm for a product");
  if (!ok || results == 0) return false;
  *out = algorithms_.emplace(shape, result.algo).first->second;
  return true;
}

const CudaOps::GemmPlan* CudaOps::PlanFor(const GemmShape& shape, int tiles) {
  const auto [it, is_new] = plans_.try_emplace({shape, tiles});
  GemmPlan& plan = it->second;
  if (!is_new && plan.calls > 0) return &plan;
  bool ok = ChooseAlgorithm(shape, &plan.algorithm) &&
            MakeLayouts(shape, tiles, &plan);
  cublasLtMatmulHeuristicResult_t checked = {};
  plan.calls = 1;
  if (ok && cublasLtMatmulAlgoCheck(lt_, plan.desc, plan.w, plan.a, plan.out,
                                    plan.out, &plan.algorithm,
                                    &checked) != CUBLAS_STATUS_SUCCESS) {
    // Not as a batch, then: tile by tile.
    const cublasLtMatmulAlgo_t algorithm = plan.algorithm;
    Destroy(plan);
    plan.algorithm = algorithm;
    plan.calls = tiles;
    ok = MakeLayouts(shape, 1, &plan);
  }
  if (ok) return &plan;
  Destroy(plan);
  return nullptr;
}

void CudaOps::Gemm(const GemmArgs& args) {
  if (!Ready(args.num_rows)) return;
  const GemmPlan* plan =
      PlanFor({args.n, args.k, args.out_stride, static_cast<int>(args.type),
               AlignmentOf(args.out)},
              (args.num_rows + kGemmRows - 1) / kGemmRows);
  if (plan == nullptr) return;
  const float alpha = 1.0f;
  const float beta = args.add ? 1.0f : 0.0f;
  for (int call = 0; call < plan->calls; ++call) {
    const int64_t row = int64_t{call} * kGemmRows;
    float* out = args.out + row * args.out_stride;
    if (!CheckLt(cublasLtMatmul(lt_, plan->desc, &alpha, args.w, plan->w,
                                args.a + row * args.k, plan->a, &beta, out,
                                plan->out, out, plan->out, &plan->algorithm,
                                nullptr, 0, compute()),
                 "cublasLtMatmul")) {
      return;
    }
  }
}

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
