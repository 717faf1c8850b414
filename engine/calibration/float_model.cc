// Long, because a forward pass and its way back mirror each other line by line.
#include "engine/calibration/float_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/base/status_macros.h"
#include "engine/common/checks.h"

namespace xcache {
namespace {

// Rows of logits at a time: 64 * vocab_size floats.
constexpr int64_t kLogitRows = 64;
// Rows of a product that one task computes.
constexpr int64_t kTaskRows = 192;
constexpr int kTaskPanels = 8;

// Panels [begin, begin + 64) of B seen from its row `first` on: the sums of a
// product over k >= first alone, or over k < `last`.
FloatMatrix Part(const FloatMatrix& b, int panel, int64_t first, int64_t last) {
  const int begin = panel * kFloatPanelCols;
  const int cols = std::min(kFloatPanelCols, b.n - begin);
  const int width = (cols + kPanelCols - 1) / kPanelCols * kPanelCols;
  FloatMatrix part = b;
  part.n = cols;
  part.k = static_cast<int>(last - first);
  part.data += (int64_t{begin} * b.k + first * width) * FloatTypeBytes(b.type);
  return part;
}

// out [rows, b.n] = a [rows, last - first] B[first:last, :], of one task.
void MultiplyPart(const Kernels& kernels, const float* a, int64_t a_stride,
                  int64_t rows, const PackedFloat& b, int64_t first,
                  int64_t last, float* out, int64_t out_stride, bool add) {
  for (int panel = 0; panel < b.num_panels(); ++panel) {
    FloatMatmulArgs args;
    args.a = a;
    args.a_stride = a_stride;
    args.num_rows = static_cast<int>(rows);
    args.b = Part(b.view(), panel, first, last);
    args.out = out + panel * kFloatPanelCols;
    args.out_stride = out_stride;
    args.epilogue = add ? Epilogue::kAdd : Epilogue::kStore;
    kernels.float_matmul(args, 0, 1);
  }
}

PackedFloat PackStrided(const float* b, int64_t k, int64_t n, int64_t k_stride,
                        int64_t n_stride) {
  // Shapes are positive here, which is all that can be wrong.
  return *PackedFloat::FromMatrix(b, static_cast<int>(k), static_cast<int>(n),
                                  k_stride, n_stride);
}

size_t Size(int64_t a, int64_t b) {
  return static_cast<size_t>(a) * static_cast<size_t>(b);
}

}  // namespace

FloatModel::FloatModel(const Model& model, Isa isa, ThreadPool* pool)
    : hparams_(model.hparams()),
      kernels_(GetKernels(isa)),
      pool_(*pool),
      rope_(model),
      d_(hparams_.d_model),
      q_dim_(int64_t{hparams_.n_heads} * hparams_.head_dim),
      kv_dim_(hparams_.kv_dim()),
      qkv_dim_(q_dim_ + 2 * kv_dim_),
      ff_(hparams_.d_ff),
      vocab_(hparams_.vocab_size) {}

absl::StatusOr<std::unique_ptr<FloatModel>> FloatModel::Create(
    const Model& model, Isa isa, ThreadPool* pool) {
  XC_RETURN_IF_ERROR(CheckIsPlainDecoder(model, "calibration"));
  std::unique_ptr<FloatModel> out(new FloatModel(model, isa, pool));
  XC_RETURN_IF_ERROR(out->Pack(model));
  return out;
}

absl::Status FloatModel::Pack(const Model& model) {
  std::vector<float> dense;
  // Tensors one below another, times a gain, both ways. FP16 is finer than any
  // quantized weight, and both ways round alike.
  const auto pack = [&](std::initializer_list<const TensorView*> tensors,
                        const TensorView* gain, Product* out) -> absl::Status {
    int64_t rows = 0;
    const int64_t cols = (*tensors.begin())->cols;
    for (const TensorView* t : tensors) rows += t->rows;
    dense.resize(Size(rows, cols));
    std::vector<float> g(static_cast<size_t>(cols), 1.0f);
    if (gain != nullptr) DequantizeRow(*gain, 0, g.data());
    float* to = dense.data();
    for (const TensorView* t : tensors) {
      for (int64_t r = 0; r < t->rows; ++r) {
        DequantizeRow(*t, r, to);
        for (float gi : g) *to++ *= gi;
      }
    }
    XC_ASSIGN_OR_RETURN(
        out->forward, PackedFloat::FromWeightRows(
                          static_cast<int>(rows), static_cast<int>(cols),
                          FloatType::kF16, [&](int row, float* values) {
                            std::copy_n(&dense[Size(row, cols)], cols, values);
                          }));
    XC_ASSIGN_OR_RETURN(
        out->backward,
        PackedFloat::FromWeightRows(
            static_cast<int>(cols), static_cast<int>(rows), FloatType::kF16,
            [&](int row, float* values) {
              for (int64_t i = 0; i < rows; ++i) {
                values[i] = dense[Size(i, cols) + static_cast<size_t>(row)];
              }
            }));
    return absl::OkStatus();
  };
  layers_.resize(static_cast<size_t>(hparams_.num_layers));
  for (int i = 0; i < hparams_.num_layers; ++i) {
    const LayerTensors& t = model.layer(i);
    Layer& layer = layers_[static_cast<size_t>(i)];
    XC_RETURN_IF_ERROR(pack({&t.wq, &t.wk, &t.wv}, &t.attn_norm, &layer.qkv));
    XC_RETURN_IF_ERROR(pack({&t.wo}, nullptr, &layer.out));
    XC_RETURN_IF_ERROR(pack({&t.w_gate, &t.w_up}, &t.ffn_norm, &layer.gate_up));
    XC_RETURN_IF_ERROR(pack({&t.w_down}, nullptr, &layer.down));
    if (t.bq || t.bk || t.bv) {
      layer.bias.resize(static_cast<size_t>(qkv_dim_));
      if (t.bq) DequantizeRow(*t.bq, 0, layer.bias.data());
      if (t.bk) DequantizeRow(*t.bk, 0, layer.bias.data() + q_dim_);
      if (t.bv) DequantizeRow(*t.bv, 0, layer.bias.data() + q_dim_ + kv_dim_);
    }
  }
  XC_RETURN_IF_ERROR(pack({&model.output()}, &model.output_norm(), &output_));
  embedding_.resize(Size(vocab_, d_));
  for (int64_t id = 0; id < vocab_; ++id) {
    DequantizeRow(model.token_embd(), id, &embedding_[Size(id, d_)]);
  }
  return absl::OkStatus();
}

void FloatModel::Multiply(const float* a, const PackedFloat& b, int64_t n,
                          float* out, bool add) const {
  const int64_t row_tasks = (n + kTaskRows - 1) / kTaskRows;
  const int64_t panel_tasks = (b.num_panels() + kTaskPanels - 1) / kTaskPanels;
  pool_.ParallelFor(row_tasks * panel_tasks, [&](int64_t task, int) {
    const int64_t row = task % row_tasks * kTaskRows;
    const int panel = static_cast<int>(task / row_tasks) * kTaskPanels;
    FloatMatmulArgs args;
    args.a = a + row * b.k();
    args.a_stride = b.k();
    args.num_rows = static_cast<int>(std::min(kTaskRows, n - row));
    args.b = b.view();
    args.out = out + row * b.n();
    args.out_stride = b.n();
    args.epilogue = add ? Epilogue::kAdd : Epilogue::kStore;
    kernels_.float_matmul(args, panel,
                          std::min(panel + kTaskPanels, b.num_panels()));
  });
}

void FloatModel::Unit(const float* x, int64_t n, std::vector<float>* unit,
                      std::vector<float>* rms) const {
  unit->resize(Size(n, d_));
  rms->resize(static_cast<size_t>(n));
  for (int64_t r = 0; r < n; ++r) {
    (*rms)[static_cast<size_t>(r)] = kernels_.rms_norm(
        x + r * d_, nullptr, static_cast<int>(d_), hparams_.rms_norm_eps,
        nullptr, &(*unit)[Size(r, d_)]);
  }
}

void FloatModel::UnitBack(const std::vector<float>& du,
                          const std::vector<float>& unit,
                          const std::vector<float>& rms,
                          std::vector<float>* dx) const {
  for (size_t r = 0; r < rms.size(); ++r) {
    const size_t at = r * static_cast<size_t>(d_);
    double dot = 0.0;
    for (size_t i = at; i < at + static_cast<size_t>(d_); ++i) {
      dot += static_cast<double>(du[i]) * static_cast<double>(unit[i]);
    }
    const auto mean = static_cast<float>(dot / static_cast<double>(d_));
    for (size_t i = at; i < at + static_cast<size_t>(d_); ++i) {
      (*dx)[i] += (du[i] - unit[i] * mean) / rms[r];
    }
  }
}

void FloatModel::Turn(float* row, int heads, int64_t position,
                      bool back) const {
  const auto half = static_cast<size_t>(rope_.rope_dim() / 2);
  std::vector<float> sin(rope_.sin(position), rope_.sin(position) + half);
  if (back) {
    for (float& s : sin) s = -s;
  }
  kernels_.rope(row, heads, hparams_.head_dim, rope_.rope_dim(),
                rope_.cos(position), sin.data(), rope_.order());
}

std::vector<float> FloatModel::Embed(std::span<const TokenId> tokens) const {
  std::vector<float> x(Size(static_cast<int64_t>(tokens.size()), d_));
  for (size_t i = 0; i < tokens.size(); ++i) {
    std::copy_n(&embedding_[Size(tokens[i], d_)], d_,
                &x[i * static_cast<size_t>(d_)]);
  }
  return x;
}

void FloatModel::Attend(int64_t n, Rows* rows) const {
  const int64_t head_dim = hparams_.head_dim;
  const int64_t group = hparams_.n_heads / hparams_.n_kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  rows->p.assign(Size(hparams_.n_heads, n * n), 0.0f);
  rows->attended.resize(Size(n, q_dim_));
  std::vector<PackedFloat> keys, values;
  for (int64_t kv = 0; kv < hparams_.n_kv_heads; ++kv) {
    const float* k = rows->turned.data() + q_dim_ + kv * head_dim;
    keys.push_back(PackStrided(k, head_dim, n, 1, qkv_dim_));
    values.push_back(PackStrided(k + kv_dim_, n, head_dim, qkv_dim_, 1));
  }
  const int64_t blocks = n / kBlockTokens;
  pool_.ParallelFor(hparams_.n_heads * blocks, [&](int64_t task, int) {
    const int64_t head = task % hparams_.n_heads;
    const int64_t block = blocks - 1 - task / hparams_.n_heads;
    const auto kv = static_cast<size_t>(head / group);
    const int64_t first = block * kBlockTokens;
    const int64_t last = first + kBlockTokens;
    float* p = &rows->p[Size(head * n + first, n)];
    FloatMatmulArgs args;
    args.a = rows->turned.data() + first * qkv_dim_ + head * head_dim;
    args.a_stride = qkv_dim_;
    args.num_rows = kBlockTokens;
    args.b = keys[kv].view();
    args.out = p;
    args.out_stride = n;
    kernels_.float_matmul(args, 0, static_cast<int>(block) + 1);
    for (int64_t r = 0; r < kBlockTokens; ++r) {
      float* row = p + r * n;
      const int64_t seen = first + r + 1;
      float most = row[0];
      for (int64_t j = 1; j < seen; ++j) most = std::max(most, row[j]);
      float sum = 0.0f;
      for (int64_t j = 0; j < seen; ++j) {
        row[j] = std::exp((row[j] - most) * scale);
        sum += row[j];
      }
      for (int64_t j = 0; j < seen; ++j) row[j] /= sum;
      std::fill(row + seen, row + last, 0.0f);
    }
    MultiplyPart(kernels_, p, n, kBlockTokens, values[kv], 0, last,
                 rows->attended.data() + first * q_dim_ + head * head_dim,
                 q_dim_, false);
  });
}

void FloatModel::RunLayer(int layer, int64_t n, std::vector<float>* x,
                          Rows* rows) {
  const Layer& w = layers_[static_cast<size_t>(layer)];
  Unit(x->data(), n, &rows->unit, &rows->rms);
  rows->qkv.resize(Size(n, qkv_dim_));
  Multiply(rows->unit.data(), w.qkv.forward, n, rows->qkv.data());
  if (layer == disturbed_) {
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t i = 0; i < 2 * kv_dim_; ++i) {
        rows->qkv[Size(r, qkv_dim_) + static_cast<size_t>(q_dim_ + i)] +=
            disturbance_[Size(r, 2 * kv_dim_) + static_cast<size_t>(i)];
      }
    }
  }
  rows->turned = rows->qkv;
  for (int64_t r = 0; r < n; ++r) {
    float* row = &rows->turned[Size(r, qkv_dim_)];
    for (size_t i = 0; i < w.bias.size(); ++i) row[i] += w.bias[i];
    Turn(row, hparams_.n_heads + hparams_.n_kv_heads, r, false);
  }
  Attend(n, rows);
  Multiply(rows->attended.data(), w.out.forward, n, x->data(), true);
  rows->x1 = *x;
  Unit(x->data(), n, &rows->unit1, &rows->rms1);
  rows->gate_up.resize(Size(n, 2 * ff_));
  Multiply(rows->unit1.data(), w.gate_up.forward, n, rows->gate_up.data());
  rows->activated.resize(Size(n, ff_));
  for (int64_t r = 0; r < n; ++r) {
    const float* gate = &rows->gate_up[Size(r, 2 * ff_)];
    kernels_.silu_mul(gate, gate + ff_, static_cast<int>(ff_),
                      &rows->activated[Size(r, ff_)]);
  }
  Multiply(rows->activated.data(), w.down.forward, n, x->data(), true);
}

void FloatModel::Tell(int layer, int64_t n, const Rows& rows,
                      const LayerFn& layer_fn) const {
  if (!layer_fn) return;
  std::vector<float> q(Size(n, q_dim_)), kv(Size(n, 2 * kv_dim_));
  for (int64_t r = 0; r < n; ++r) {
    const float* row = &rows.qkv[Size(r, qkv_dim_)];
    std::copy_n(row, q_dim_, &q[Size(r, q_dim_)]);
    std::copy_n(row + q_dim_, 2 * kv_dim_, &kv[Size(r, 2 * kv_dim_)]);
  }
  layer_fn(layer, {rows.unit.data(), rows.rms.data(), q.data(), kv.data()});
}

void FloatModel::Forward(std::span<const TokenId> tokens,
                         const LayerFn& layer_fn) {
  const auto n = static_cast<int64_t>(tokens.size());
  rope_.Extend(n);
  std::vector<float> x = Embed(tokens);
  Rows rows;
  for (int layer = 0; layer < hparams_.num_layers; ++layer) {
    RunLayer(layer, n, &x, &rows);
    Tell(layer, n, rows, layer_fn);
  }
}

void FloatModel::ForProbabilities(
    const std::vector<float>& unit, int64_t n,
    const std::function<void(int64_t first, int64_t rows, float* p)>& fn)
    const {
  std::vector<float> p(Size(kLogitRows, vocab_));
  for (int64_t first = 0; first < n; first += kLogitRows) {
    const int64_t count = std::min(kLogitRows, n - first);
    Multiply(unit.data() + first * d_, output_.forward, count, p.data());
    pool_.ParallelFor(count, [&](int64_t r, int) {
      float* row = p.data() + r * vocab_;
      const float most = *std::max_element(row, row + vocab_);
      double sum = 0.0;
      for (int64_t i = 0; i < vocab_; ++i) {
        row[i] = std::exp(row[i] - most);
        sum += static_cast<double>(row[i]);
      }
      const auto inverse = static_cast<float>(1.0 / sum);
      for (int64_t i = 0; i < vocab_; ++i) row[i] *= inverse;
    });
    fn(first, count, p.data());
  }
}

std::vector<double> FloatModel::LogLikelihoods(std::span<const TokenId> tokens,
                                               const TargetFn& target) {
  const auto n = static_cast<int64_t>(tokens.size());
  rope_.Extend(n);
  std::vector<float> x = Embed(tokens), unit, rms;
  Rows rows;
  for (int i = 0; i < hparams_.num_layers; ++i) RunLayer(i, n, &x, &rows);
  Unit(x.data(), n, &unit, &rms);
  std::vector<double> out;
  ForProbabilities(unit, n, [&](int64_t first, int64_t count, float* p) {
    for (int64_t r = 0; r < count; ++r) {
      const std::span<const float> row(p + r * vocab_,
                                       static_cast<size_t>(vocab_));
      const TokenId id = target(static_cast<int>(first + r), row);
      out.push_back(
          std::log(static_cast<double>(row[static_cast<size_t>(id)])));
    }
  });
  return out;
}

void FloatModel::AttendBack(int64_t n, const Rows& rows,
                            const std::vector<float>& dout,
                            std::vector<float>* dturned,
                            std::vector<float>* outside) const {
  const int64_t head_dim = hparams_.head_dim;
  const int64_t heads = hparams_.n_heads;
  const int64_t kv_heads = hparams_.n_kv_heads;
  const int64_t group = heads / kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  const int64_t blocks = n / kBlockTokens;
  dturned->assign(Size(n, qkv_dim_), 0.0f);
  outside->assign(Size(n, 2 * kv_dim_), 0.0f);

  std::vector<PackedFloat> keys, values;
  for (int64_t kv = 0; kv < kv_heads; ++kv) {
    const float* k = rows.turned.data() + q_dim_ + kv * head_dim;
    keys.push_back(PackStrided(k, n, head_dim, qkv_dim_, 1));
    values.push_back(PackStrided(k + kv_dim_, head_dim, n, 1, qkv_dim_));
  }
  // d(scores), scaled, and d(q).
  std::vector<float> ds(Size(heads, n * n));
  pool_.ParallelFor(heads * blocks, [&](int64_t task, int) {
    const int64_t head = task % heads;
    const int64_t block = blocks - 1 - task / heads;
    const auto kv = static_cast<size_t>(head / group);
    const int64_t first = block * kBlockTokens;
    const int64_t last = first + kBlockTokens;
    float* out = &ds[Size(head * n + first, n)];
    FloatMatmulArgs args;
    args.a = dout.data() + first * q_dim_ + head * head_dim;
    args.a_stride = q_dim_;
    args.num_rows = kBlockTokens;
    args.b = values[kv].view();
    args.out = out;
    args.out_stride = n;
    kernels_.float_matmul(args, 0, static_cast<int>(block) + 1);
    for (int64_t r = 0; r < kBlockTokens; ++r) {
      float* row = out + r * n;
      const float* p = &rows.p[Size(head * n + first + r, n)];
      double dot = 0.0;
      for (int64_t j = 0; j < last; ++j) {
        dot += static_cast<double>(p[j]) * static_cast<double>(row[j]);
      }
      const auto mean = static_cast<float>(dot);
      for (int64_t j = 0; j < last; ++j) {
        row[j] = p[j] * (row[j] - mean) * scale;
      }
    }
    MultiplyPart(kernels_, out, n, kBlockTokens, keys[kv], 0, last,
                 dturned->data() + first * qkv_dim_ + head * head_dim, qkv_dim_,
                 false);
  });

  std::vector<PackedFloat> queries, douts;
  for (int64_t head = 0; head < heads; ++head) {
    queries.push_back(PackStrided(rows.turned.data() + head * head_dim, n,
                                  head_dim, qkv_dim_, 1));
    douts.push_back(
        PackStrided(dout.data() + head * head_dim, n, head_dim, q_dim_, 1));
  }
  // d(k) and d(v) of a block: from its own rows, then from those behind it.
  pool_.ParallelFor(kv_heads * blocks, [&](int64_t task, int) {
    const int64_t kv = task % kv_heads;
    const int64_t block = task / kv_heads;
    const int64_t first = block * kBlockTokens;
    const int64_t last = first + kBlockTokens;
    std::vector<float> turned(Size(kBlockTokens, n));
    std::vector<float> sum(Size(kBlockTokens, head_dim));
    for (const bool is_value : {false, true}) {
      const int64_t at = (is_value ? kv_dim_ : 0) + kv * head_dim;
      for (const bool own : {false, true}) {
        const int64_t begin = own ? first : last;
        const int64_t end = own ? last : n;
        if (begin == end) continue;
        std::fill(sum.begin(), sum.end(), 0.0f);
        for (int64_t head = kv * group; head < (kv + 1) * group; ++head) {
          const float* from =
              (is_value ? rows.p.data() : ds.data()) + Size(head, n * n);
          const int64_t count = end - begin;
          for (int64_t r = 0; r < count; ++r) {
            for (int64_t j = 0; j < kBlockTokens; ++j) {
              turned[static_cast<size_t>(j * count + r)] =
                  from[(begin + r) * n + first + j];
            }
          }
          MultiplyPart(kernels_, turned.data(), count, kBlockTokens,
                       (is_value ? douts : queries)[static_cast<size_t>(head)],
                       begin, end, sum.data(), head_dim, true);
        }
        for (int64_t j = 0; j < kBlockTokens; ++j) {
          float* all = &(*dturned)[Size(first + j, qkv_dim_)] + q_dim_ + at;
          float* other = &(*outside)[Size(first + j, 2 * kv_dim_)] + at;
          for (int64_t i = 0; i < head_dim; ++i) {
            const float value = sum[static_cast<size_t>(j * head_dim + i)];
            all[i] += value;
            if (!own) other[i] += value;
          }
        }
      }
    }
  });
}

void FloatModel::RunLayerBack(int layer, int64_t n, const Rows& rows,
                              bool whole, std::vector<float>* dx,
                              std::vector<float>* gradient) {
  const Layer& w = layers_[static_cast<size_t>(layer)];
  std::vector<float> da(Size(n, ff_)), dgu(Size(n, 2 * ff_)), du(Size(n, d_));
  Multiply(dx->data(), w.down.backward, n, da.data());
  for (int64_t r = 0; r < n; ++r) {
    const float* gate = &rows.gate_up[Size(r, 2 * ff_)];
    const float* up = gate + ff_;
    float* dgate = &dgu[Size(r, 2 * ff_)];
    float* dup = dgate + ff_;
    const float* d = &da[Size(r, ff_)];
    for (int64_t i = 0; i < ff_; ++i) {
      const float s = 1.0f / (1.0f + std::exp(-gate[i]));
      dgate[i] = d[i] * up[i] * s * (1.0f + gate[i] * (1.0f - s));
      dup[i] = d[i] * gate[i] * s;
    }
  }
  Multiply(dgu.data(), w.gate_up.backward, n, du.data());
  UnitBack(du, rows.unit1, rows.rms1, dx);

  std::vector<float> dattended(Size(n, q_dim_)), dturned, outside;
  Multiply(dx->data(), w.out.backward, n, dattended.data());
  AttendBack(n, rows, dattended, &dturned, &outside);
  gradient->resize(outside.size());
  for (int64_t r = 0; r < n; ++r) {
    float* row = &dturned[Size(r, qkv_dim_)];
    Turn(row, hparams_.n_heads + hparams_.n_kv_heads, r, true);
    float* other = &outside[Size(r, 2 * kv_dim_)];
    Turn(other, hparams_.n_kv_heads, r, true);
    std::copy_n(whole ? row + q_dim_ : other, 2 * kv_dim_,
                &(*gradient)[Size(r, 2 * kv_dim_)]);
  }
  Multiply(dturned.data(), w.qkv.backward, n, du.data());
  UnitBack(du, rows.unit, rows.rms, dx);
}

void FloatModel::Gradients(std::span<const TokenId> tokens,
                           const TargetFn& target, const LayerFn& layer_fn,
                           const GradientFn& gradient_fn, bool whole) {
  const auto n = static_cast<int64_t>(tokens.size());
  rope_.Extend(n);
  std::vector<float> x = Embed(tokens);
  // Inputs of the layers: the rest is computed again on the way back.
  std::vector<std::vector<float>> inputs;
  Rows rows;
  for (int layer = 0; layer < hparams_.num_layers; ++layer) {
    inputs.push_back(x);
    RunLayer(layer, n, &x, &rows);
    Tell(layer, n, rows, layer_fn);
  }
  std::vector<float> unit, rms, du(Size(n, d_)), dx(Size(n, d_), 0.0f);
  Unit(x.data(), n, &unit, &rms);
  ForProbabilities(unit, n, [&](int64_t first, int64_t count, float* p) {
    // d log p(target) / d logits = (target) - p
    for (int64_t r = 0; r < count; ++r) {
      float* row = p + r * vocab_;
      const TokenId id = target(static_cast<int>(first + r),
                                {row, static_cast<size_t>(vocab_)});
      for (int64_t i = 0; i < vocab_; ++i) row[i] = -row[i];
      row[id] += 1.0f;
    }
    Multiply(p, output_.backward, count, du.data() + first * d_);
  });
  UnitBack(du, unit, rms, &dx);
  std::vector<float> gradient;
  for (int layer = hparams_.num_layers - 1; layer >= 0; --layer) {
    x = std::move(inputs[static_cast<size_t>(layer)]);
    RunLayer(layer, n, &x, &rows);
    RunLayerBack(layer, n, rows, whole, &dx, &gradient);
    gradient_fn(layer, gradient.data());
  }
}

}  // namespace xcache
