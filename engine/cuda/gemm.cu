#include "engine/cuda/gemm.h"

namespace xcache::cuda {
namespace {

// Bytes, at most 256: what is assumed of whole buffers.
uint32_t AlignmentOf(const void* p) {
  const auto at = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p)) | 256;
  return at & (~at + 1);
}

}  // namespace

Gemms::Gemms(Errors& errors) : errors_(errors) {
  errors_.Check(cublasLtCreate(&lt_), "cublasLtCreate");
}

Gemms::~Gemms() {
  for (auto& [key, plan] : plans_) Destroy(plan);
  if (lt_ != nullptr) cublasLtDestroy(lt_);
}

bool Gemms::MakeLayout(cublasLtMatrixLayout_t* layout, cudaDataType_t type,
                       int rows, int cols, int64_t ld, int batch,
                       int64_t stride) {
  return errors_.Check(cublasLtMatrixLayoutCreate(
                           layout, type, static_cast<uint64_t>(rows),
                           static_cast<uint64_t>(cols), ld),
                       "cublasLtMatrixLayoutCreate") &&
         errors_.Check(cublasLtMatrixLayoutSetAttribute(
                           *layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                           sizeof(batch)),
                       "batch count") &&
         errors_.Check(cublasLtMatrixLayoutSetAttribute(
                           *layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                           &stride, sizeof(stride)),
                       "batch stride");
}

// Column-major: out^T [n, 64] = (w^T [k, n])^T a^T [k, 64]; w is shared by the
// whole batch.
bool Gemms::MakeLayouts(const Shape& shape, int batch, Plan* plan) {
  const auto& [n, k, out_stride, type, alignment] = shape;
  const cudaDataType_t half =
      static_cast<HalfType>(type) == HalfType::kBf16 ? CUDA_R_16BF : CUDA_R_16F;
  const cublasOperation_t transpose = CUBLAS_OP_T;
  return errors_.Check(cublasLtMatmulDescCreate(&plan->desc, CUBLAS_COMPUTE_32F,
                                                CUDA_R_32F),
                       "cublasLtMatmulDescCreate") &&
         errors_.Check(cublasLtMatmulDescSetAttribute(
                           plan->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transpose,
                           sizeof(transpose)),
                       "transposition") &&
         MakeLayout(&plan->w, half, k, n, k, batch, 0) &&
         MakeLayout(&plan->a, half, k, kGemmRows, k, batch,
                    int64_t{kGemmRows} * k) &&
         MakeLayout(&plan->out, CUDA_R_32F, n, kGemmRows, out_stride, batch,
                    kGemmRows * out_stride);
}

void Gemms::Destroy(Plan& plan) {
  for (cublasLtMatrixLayout_t layout : {plan.w, plan.a, plan.out}) {
    if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
  }
  if (plan.desc != nullptr) cublasLtMatmulDescDestroy(plan.desc);
  plan = Plan();
}

bool Gemms::ChooseAlgorithm(const Shape& shape, cublasLtMatmulAlgo_t* out) {
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
  Plan one;
  cublasLtMatmulPreference_t preference = nullptr;
  cublasLtMatmulHeuristicResult_t result = {};
  int results = 0;
  const bool ok =
      MakeLayouts(shape, 1, &one) &&
      errors_.Check(cublasLtMatmulPreferenceCreate(&preference),
                    "preference") &&
      errors_.Check(cublasLtMatmulPreferenceSetAttribute(
                        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                        &workspace, sizeof(workspace)),
                    "workspace") &&
      errors_.Check(cublasLtMatmulPreferenceSetAttribute(
                        preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                        &reductions, sizeof(reductions)),
                    "reduction scheme") &&
      errors_.Check(cublasLtMatmulPreferenceSetAttribute(
                        preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                        &alignment, sizeof(alignment)),
                    "alignment") &&
      errors_.Check(cublasLtMatmulPreferenceSetAttribute(
                        preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                        &alignment, sizeof(alignment)),
                    "alignment") &&
      errors_.Check(cublasLtMatmulAlgoGetHeuristic(lt_, one.desc, one.w, one.a,
                                                   one.out, one.out, preference,
                                                   1, &result, &results),
                    "cublasLtMatmulAlgoGetHeuristic");
  if (preference != nullptr) cublasLtMatmulPreferenceDestroy(preference);
  Destroy(one);
  if (ok && results == 0)
    errors_.Fail("cublasLt", "no algorithm for a product");
  if (!ok || results == 0) return false;
  *out = algorithms_.emplace(shape, result.algo).first->second;
  return true;
}

const Gemms::Plan* Gemms::PlanFor(const Shape& shape, int tiles) {
  const auto [it, is_new] = plans_.try_emplace({shape, tiles});
  Plan& plan = it->second;
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

void Gemms::Run(const GemmArgs& args, cudaStream_t stream) {
  const Plan* plan =
      PlanFor({args.n, args.k, args.out_stride, static_cast<int>(args.type),
               AlignmentOf(args.out)},
              (args.num_rows + kGemmRows - 1) / kGemmRows);
  if (plan == nullptr) return;
  const float alpha = 1.0f;
  const float beta = args.add ? 1.0f : 0.0f;
  for (int call = 0; call < plan->calls; ++call) {
    const int64_t row = int64_t{call} * kGemmRows;
    float* out = args.out + row * args.out_stride;
    if (!errors_.Check(cublasLtMatmul(lt_, plan->desc, &alpha, args.w, plan->w,
                                      args.a + row * args.k, plan->a, &beta,
                                      out, plan->out, out, plan->out,
                                      &plan->algorithm, nullptr, 0, stream),
                       "cublasLtMatmul")) {
      return;
    }
  }
}

}  // namespace xcache::cuda
