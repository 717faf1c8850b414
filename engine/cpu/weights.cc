#include "engine/cpu/weights.h"

#include <atomic>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/mutex.h"
#include "engine/base/status_macros.h"
#include "engine/cpu/gguf_blocks.h"

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
                                          const ReleaseFn& release) {
  const int rows = static_cast<int>(tensor.rows);
  const int cols = static_cast<int>(tensor.cols);
  const std::optional<QuantFormat> format = PackedFormatOf(tensor.type);
  const size_t row_bytes =
      tensor.bytes.size() / static_cast<size_t>(tensor.rows);
  size_t released = 0;
  // Before row `row` is read, or after the last one.
  const auto release_before = [&](int row) {
    // Far larger than the pages that parts share at their ends.
    constexpr size_t kReleasedAtOnce = size_t{4} << 20;
    const size_t read = static_cast<size_t>(row) * row_bytes;
    if (release == nullptr ||
        (row < rows && read - released < kReleasedAtOnce)) {
      return;
    }
    release(tensor.bytes.subspan(released, read - released));
    released = read;
  };
  CpuMatrix matrix;
  absl::Status status;
  if (format.has_value()) {
    auto packed = PackedMatrix::Pack(
        rows, cols, *format,
        [&](int row, int block, WeightBlock* out) {
          if (block == 0) release_before(row);
          ReadWeightBlock(
              tensor.type,
              tensor.bytes.data() + static_cast<size_t>(row) * row_bytes, block,
              out);
        },
        arena);
    status = packed.status();
    if (packed.ok()) matrix.packed_ = *std::move(packed);
  } else {
    auto packed = PackedFloat::FromWeightRows(
        rows, cols, FloatTypeOf(tensor.type),
        [&](int row, float* out) {
          release_before(row);
          DequantizeRow(tensor, row, out);
        },
        arena);
    status = packed.status();
    if (packed.ok()) matrix.packed_ = *std::move(packed);
  }
  if (!status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", std::string(tensor.name), ": ", status.message()));
  }
  release_before(rows);
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

absl::StatusOr<CpuWeights> PackWeights(const Model& model, bool release_packed,
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

  Mutex mu;
  absl::Status status;  // the first error; guarded by mu
  std::atomic<int64_t> done{0};
  const auto num_jobs = static_cast<int64_t>(jobs.size());
  pool.ParallelFor(num_jobs, [&](int64_t i, int thread) {
    const Job& job = jobs[static_cast<size_t>(i)];
    const ReleaseFn release = [&](std::span<const uint8_t> bytes) {
      TensorView part = job.from;
      part.bytes = bytes;
      model.Release(part);
    };
    absl::StatusOr<CpuMatrix> packed =
        CpuMatrix::Pack(job.from, weights.arena.get(),
                        release_packed && !job.read_again ? release : nullptr);
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
  if (progress) progress("packing weights", 1.0);
  return weights;
}

}  // namespace xcache
