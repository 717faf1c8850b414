#include "engine/cpu/weights.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/mutex.h"
#include "engine/base/status_macros.h"
#include "engine/cpu/gguf_blocks.h"
#include "engine/cpu/weights_cache.h"

namespace xcache {
namespace {

FloatType FloatTypeOf(GgufType type) {
  if (type == GgufType::kF16) return FloatType::kF16;
  if (type == GgufType::kBF16) return FloatType::kBF16;
  return FloatType::kF32;
}

std::vector<float> Vector(const TensorView& tensor) {
  std::vector<float> out(static_cast<size_t>(tensor.rows * tensor.cols));
  for (int64_t row = 0; row < tensor.rows; ++row) {
    DequantizeRow(tensor, row, out.data() + row * tensor.cols);
  }
  return out;
}

std::vector<float> Vector(const std::optional<TensorView>& tensor) {
  return tensor.has_value() ? Vector(*tensor) : std::vector<float>();
}

}  // namespace

absl::StatusOr<CpuMatrix> CpuMatrix::Pack(const TensorView& tensor,
                                          WeightArena* arena,
                                          const ReleaseFn& release,
                                          PackedParts* parts) {
  const auto refused = [&tensor](const absl::Status& status) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", std::string(tensor.name), ": ", status.message()));
  };
  absl::StatusOr<CpuMatrix> matrix = ShapeOf(tensor);
  if (!matrix.ok()) return refused(matrix.status());
  uint8_t* data = arena->Allocate(matrix->bytes());
  XC_ASSIGN_OR_RETURN(matrix, Over(tensor, data));
  const auto offset = [&matrix](int row) {
    return std::visit([row](const auto& m) { return m.OffsetOf(row); },
                      matrix->packed_);
  };
  const int rows = matrix->rows();
  const size_t row_bytes = tensor.bytes.size() / static_cast<size_t>(rows);
  size_t part = 0;
  for (int first = 0, last = 0; first < rows; first = last, ++part) {
    last = std::min(rows, first + matrix->part_rows());
    const std::span<uint8_t> to(data + offset(first),
                                offset(last) - offset(first));
    if (parts == nullptr || !parts->Read(part, to)) {
      const absl::Status status = matrix->PackRows(tensor, first, last, data);
      if (!status.ok()) return refused(status);
      if (parts != nullptr) parts->Add(part, to);
    }
    if (release == nullptr) continue;
    release(
        tensor.bytes.subspan(static_cast<size_t>(first) * row_bytes,
                             static_cast<size_t>(last - first) * row_bytes));
  }
  return matrix;
}

absl::Status CpuMatrix::PackRows(const TensorView& tensor, int first, int last,
                                 uint8_t* data) const {
  if (!quantized()) {
    std::get<PackedFloat>(packed_).PackRows(
        first, last,
        [&tensor](int row, float* out) { DequantizeRow(tensor, row, out); },
        data);
    return absl::OkStatus();
  }
  const size_t row_bytes =
      tensor.bytes.size() / static_cast<size_t>(tensor.rows);
  return std::get<PackedMatrix>(packed_).PackRows(
      first, last,
      [&](int row, int block, WeightBlock* out) {
        ReadWeightBlock(
            tensor.type,
            tensor.bytes.data() + static_cast<size_t>(row) * row_bytes, block,
            out);
      },
      data);
}

int CpuMatrix::part_rows() const {
  // A huge page; far larger than the pages that parts share at their ends.
  constexpr int64_t kPartBytes = int64_t{2} << 20;
  const int64_t rows_in_part =
      kPartBytes * rows() / static_cast<int64_t>(bytes());
  return static_cast<int>(std::max<int64_t>(1, rows_in_part / granule())) *
         granule();
}

absl::StatusOr<CpuMatrix> CpuMatrix::Over(const TensorView& tensor,
                                          const uint8_t* data) {
  const int rows = static_cast<int>(tensor.rows);
  const int cols = static_cast<int>(tensor.cols);
  CpuMatrix matrix;
  if (const auto format = PackedFormatOf(tensor.type)) {
    XC_ASSIGN_OR_RETURN(matrix.packed_,
                        PackedMatrix::Over(rows, cols, *format, data));
  } else {
    XC_ASSIGN_OR_RETURN(
        matrix.packed_,
        PackedFloat::Over(rows, cols, FloatTypeOf(tensor.type), data));
  }
  return matrix;
}

int CpuMatrix::rows() const {
  return quantized() ? std::get<PackedMatrix>(packed_).rows()
                     : std::get<PackedFloat>(packed_).n();
}

int CpuMatrix::cols() const {
  return quantized() ? std::get<PackedMatrix>(packed_).cols()
                     : std::get<PackedFloat>(packed_).k();
}

size_t CpuMatrix::bytes() const {
  return std::visit([](const auto& m) { return m.bytes(); }, packed_);
}

const uint8_t* CpuMatrix::data() const {
  return std::visit(
      [](const auto& m) -> const uint8_t* { return m.view().data; }, packed_);
}

void CpuMatrix::Row(int row, float* out) const {
  std::visit([&](const auto& m) { UnpackRow(m.view(), row, out); }, packed_);
}

void CpuMatrix::Multiply(const Kernels& kernels, const Activations& a,
                         int num_rows, int first, int last, Epilogue epilogue,
                         float* out, int64_t out_stride) const {
  const int panel = granule();
  const int first_panel = first / panel;
  const int last_panel = (last + panel - 1) / panel;
  if (quantized()) {
    QuantMatmulArgs args;
    args.a = a.q;
    args.num_rows = num_rows;
    args.w = quant();
    args.out = out;
    args.out_stride = out_stride;
    args.epilogue = epilogue;
    kernels.quant_matmul(args, first_panel, last_panel);
  } else {
    FloatMatmulArgs args;
    args.a = a.x;
    args.a_stride = a.x_stride;
    args.num_rows = num_rows;
    args.b = std::get<PackedFloat>(packed_).view();
    args.out = out;
    args.out_stride = out_stride;
    args.epilogue = epilogue;
    kernels.float_matmul(args, first_panel, last_panel);
  }
}

void CpuWeights::Embedding(TokenId token, float* out) const {
  if (embedding.has_value()) {
    DequantizeRow(*embedding, token, out);
  } else {
    output.Row(token, out);
  }
}

int64_t CpuWeights::bytes() const {
  size_t total = output.bytes() + output_norm.size() * sizeof(float);
  for (const CpuLayer& l : layers) {
    for (const CpuMatrix* m :
         {&l.wq, &l.wk, &l.wv, &l.wo, &l.w_gate, &l.w_up, &l.w_down}) {
      total += m->bytes();
    }
    for (const std::vector<float>* v :
         {&l.attn_norm, &l.ffn_norm, &l.bq, &l.bk, &l.bv, &l.q_norm, &l.k_norm,
          &l.post_attn_norm, &l.post_ffn_norm}) {
      total += v->size() * sizeof(float);
    }
  }
  return static_cast<int64_t>(total);
}

absl::StatusOr<CpuWeights> PackWeights(const Model& model,
                                       const PackOptions& options,
                                       ThreadPool& pool,
                                       const ProgressFn& progress) {
  CpuWeights weights;
  weights.arena = std::make_unique<WeightArena>();
  weights.layers.resize(static_cast<size_t>(model.hparams().num_layers));
  struct Job {
    TensorView from;
    CpuMatrix* to;
    bool read_again;
  };
  std::vector<Job> jobs;
  for (int i = 0; i < model.hparams().num_layers; ++i) {
    const LayerTensors& from = model.layer(i);
    CpuLayer& to = weights.layers[static_cast<size_t>(i)];
    to.attn_norm = Vector(from.attn_norm);
    to.ffn_norm = Vector(from.ffn_norm);
    to.bq = Vector(from.bq);
    to.bk = Vector(from.bk);
    to.bv = Vector(from.bv);
    to.q_norm = Vector(from.q_norm);
    to.k_norm = Vector(from.k_norm);
    to.post_attn_norm = Vector(from.post_attn_norm);
    to.post_ffn_norm = Vector(from.post_ffn_norm);
    jobs.insert(jobs.end(), {{from.wq, &to.wq, false},
                             {from.wk, &to.wk, true},
                             {from.wv, &to.wv, true},
                             {from.wo, &to.wo, false},
                             {from.w_gate, &to.w_gate, false},
                             {from.w_up, &to.w_up, false},
                             {from.w_down, &to.w_down, false}});
  }
  weights.output_norm = Vector(model.output_norm());
  jobs.push_back({model.output(), &weights.output, false});
  if (model.output().bytes.data() != model.token_embd().bytes.data()) {
    weights.embedding = model.token_embd();
  }

  std::unique_ptr<WeightsCache> cache;
  if (!options.cache_dir.empty()) {
    std::vector<TensorView> tensors;
    for (const Job& job : jobs) tensors.push_back(job.from);
    XC_ASSIGN_OR_RETURN(
        cache,
        WeightsCache::Open(options.cache_dir, model.fingerprint(), tensors));
  }

  Mutex mu;
  absl::Status status;  // the first error; guarded by mu
  std::atomic<int64_t> done{0};
  const auto num_jobs = static_cast<int64_t>(jobs.size());
  pool.ParallelFor(num_jobs, [&](int64_t i, int thread) {
    const Job& job = jobs[static_cast<size_t>(i)];
    ReleaseFn release = [&](std::span<const uint8_t> bytes) {
      TensorView part = job.from;
      part.bytes = bytes;
      model.Release(part);
    };
    if (!options.release_packed || job.read_again) release = nullptr;
    std::optional<WeightsCache::Matrix> parts;
    if (cache != nullptr) parts.emplace(cache->matrix(static_cast<size_t>(i)));
    absl::StatusOr<CpuMatrix> packed =
        CpuMatrix::Pack(job.from, weights.arena.get(), release,
                        parts.has_value() ? &*parts : nullptr);
    if (packed.ok()) {
      *job.to = *std::move(packed);
    } else {
      MutexLock lock(mu);
      status.Update(packed.status());
    }
    const int64_t n = done.fetch_add(1, std::memory_order_relaxed) + 1;
    // Thread 0 is the caller's: the one that progress is reported on.
    if (thread == 0 && progress) {
      progress("packing weights",
               static_cast<double>(n) / static_cast<double>(num_jobs));
    }
  });
  XC_RETURN_IF_ERROR(status);
  if (cache != nullptr) {
    std::vector<const CpuMatrix*> matrices;
    for (const Job& job : jobs) matrices.push_back(job.to);
    cache->Save(matrices);
  }
  if (progress) progress("packing weights", 1.0);
  return weights;
}

}  // namespace xcache
