#include "engine/cpu/forward.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace xcache {
namespace {

QuantRows QuantView(AlignedBuffer<uint8_t>& buffer, int cols) {
  return {buffer.data(), QuantRowBytes(cols), cols};
}

QuantRows RowsFrom(QuantRows rows, int64_t first) {
  rows.data += first * rows.stride;
  return rows;
}

bool Fusable(const CpuMatrix& gate, const CpuMatrix& up) {
  if (!gate.quantized() || !up.quantized()) return false;
  const QuantMatrix& g = gate.quant();
  const QuantMatrix& u = up.quant();
  return g.rows == u.rows && g.cols == u.cols && g.format == u.format;
}

}  // namespace

CpuForward::CpuForward(const Model& model, const CpuWeights& weights,
                       const Kernels& kernels, ThreadPool& pool,
                       const KvShape& shape)
    : hparams_(model.hparams()),
      weights_(weights),
      kernels_(kernels),
      pool_(pool),
      shape_(shape),
      q_dim_(hparams_.n_heads * hparams_.head_dim),
      qkv_dim_(q_dim_ + 2 * shape.kv_dim()),
      rope_(model),
      attention_(hparams_, kernels, pool, shape, qkv_dim_, q_dim_) {
  if (hparams_.window > 0) sliding_rope_.emplace(model, /*slides=*/true);
}

void CpuForward::ExtendRope(int64_t num_positions) {
  rope_.Extend(num_positions);
  if (sliding_rope_.has_value()) sliding_rope_->Extend(num_positions);
}

template <typename Fn>
void CpuForward::ForRows(const Fn& fn) {
  if (rows_ < kMinParallelRows || pool_.num_threads() == 1) {
    fn(int64_t{0}, rows_);
    return;
  }
  const int64_t per_task =
      std::clamp<int64_t>(rows_ / (4 * pool_.num_threads()), 1, 16);
  pool_.ParallelFor((rows_ + per_task - 1) / per_task, [&](int64_t task, int) {
    const int64_t first = task * per_task;
    fn(first, std::min(first + per_task, rows_));
  });
}

template <typename Fn>
void CpuForward::ForColumns(std::span<const CpuMatrix* const> matrices,
                            const Fn& fn) {
  int unit = 1;
  for (const CpuMatrix* m : matrices) unit = std::max(unit, m->granule());
  const auto units_of = [unit](const CpuMatrix* m) {
    return (m->rows() + unit - 1) / unit;
  };
  int64_t total = 0;
  for (const CpuMatrix* m : matrices) total += units_of(m);
  // Several tasks a thread, so that uneven ones balance.
  const int64_t num_tasks =
      pool_.num_threads() == 1
          ? 1
          : std::min<int64_t>(total, 4 * pool_.num_threads());
  pool_.ParallelFor(num_tasks, [&](int64_t task, int) {
    int64_t first = total * task / num_tasks;
    int64_t last = total * (task + 1) / num_tasks;
    for (size_t i = 0; i < matrices.size() && last > 0; ++i) {
      const int64_t units = units_of(matrices[i]);
      if (first < units) {
        const int rows = matrices[i]->rows();
        fn(i, static_cast<int>(std::max<int64_t>(first, 0)) * unit,
           std::min(rows, static_cast<int>(std::min(last, units)) * unit));
      }
      first -= units;
      last -= units;
    }
  });
}

void CpuForward::Reserve(int64_t rows) {
  rows_ = rows;
  if (rows <= capacity_) return;
  capacity_ = std::max<int64_t>(rows, std::min<int64_t>(2 * capacity_, 512));
  const int64_t n = capacity_;
  Grow(x_, n * hparams_.d_model);
  Grow(norm_, n * hparams_.d_model);
  Grow(qkv_, n * qkv_dim_);
  Grow(attn_, n * q_dim_);
  Grow(ff_, n * hparams_.d_ff);
  Grow(q_norm_, n * QuantRowBytes(hparams_.d_model));
  Grow(q_attn_, n * QuantRowBytes(q_dim_));
  Grow(q_ff_, n * QuantRowBytes(hparams_.d_ff));
}

void CpuForward::Run(std::span<ForwardItem> items) {
  int64_t rows = 0;
  int64_t positions = 0;
  row_of_item_.clear();
  for (const ForwardItem& item : items) {
    row_of_item_.push_back(rows);
    const auto n = static_cast<int64_t>(item.tokens.size());
    rows += n;
    positions = std::max(positions, item.first_position() + n);
  }
  if (rows == 0) return;
  Reserve(rows);
  ExtendRope(positions);
  Embed(items);
  PlanAttention(items);
  for (int layer = 0; layer < hparams_.num_layers; ++layer) {
    Layer(layer, items);
  }
  Logits(items);
}

void CpuForward::Embed(std::span<const ForwardItem> items) {
  float* out = x_.data();
  for (const ForwardItem& item : items) {
    for (TokenId token : item.tokens) {
      weights_.Embedding(token, out);
      if (hparams_.embedding_scale != 1.0f) {
        for (int i = 0; i < hparams_.d_model; ++i) {
          out[i] *= hparams_.embedding_scale;
        }
      }
      out += hparams_.d_model;
    }
  }
}

void CpuForward::NormRows(const std::vector<float>& gain, bool quantize,
                          int layer, std::span<ForwardItem> items) {
  const int d = hparams_.d_model;
  const QuantRows q = QuantView(q_norm_, d);
  ForRows([&](int64_t first, int64_t last) {
    // The item that row `first` is in; only live rows need to know.
    size_t i = static_cast<size_t>(std::upper_bound(row_of_item_.begin(),
                                                    row_of_item_.end(), first) -
                                   row_of_item_.begin()) -
               1;
    for (int64_t row = first; row < last; ++row) {
      while (i + 1 < row_of_item_.size() && row_of_item_[i + 1] <= row) ++i;
      float* unit = nullptr;
      float* rms = nullptr;
      if (layer >= 0 && items[i].live_rows != nullptr) {
        const int64_t slot = items[i].live_tokens + row - row_of_item_[i];
        unit = items[i].live_rows->unit_x(layer);
        rms = items[i].live_rows->rms(layer);
        if (unit != nullptr) unit += slot * d;
        if (rms != nullptr) rms += slot;
      }
      const float value = kernels_.rms_norm(x_.data() + row * d, gain.data(), d,
                                            hparams_.rms_norm_eps,
                                            norm_.data() + row * d, unit);
      if (rms != nullptr) *rms = value;
    }
    if (quantize) {
      kernels_.quantize_rows(norm_.data() + first * d, d,
                             static_cast<int>(last - first),
                             RowsFrom(q, first));
    }
  });
}

void CpuForward::QuantizeAll(const float* x, int64_t stride,
                             const QuantRows& out) {
  ForRows([&](int64_t first, int64_t last) {
    kernels_.quantize_rows(x + first * stride, stride,
                           static_cast<int>(last - first),
                           RowsFrom(out, first));
  });
}

void CpuForward::Turn(int layer, float* heads, int num_heads,
                      const std::vector<float>& gain, int64_t position) const {
  const RopeTable& rope = hparams_.slides(layer) ? *sliding_rope_ : rope_;
  const int head_dim = shape_.head_dim;
  for (int h = 0; h < num_heads && !gain.empty(); ++h) {
    float* head = heads + static_cast<ptrdiff_t>(h) * head_dim;
    kernels_.rms_norm(head, gain.data(), head_dim, hparams_.rms_norm_eps, head,
                      nullptr);
  }
  kernels_.rope(heads, num_heads, head_dim, rope.rope_dim(), rope.cos(position),
                rope.sin(position), rope.order());
}

void CpuForward::StoreRows(int layer, int64_t block_index, int first_slot,
                           int num_rows, float* k, float* v, int64_t stride,
                           CpuKvBlock& block) const {
  const CpuLayer& w = weights_.layers[static_cast<size_t>(layer)];
  const int kv_dim = shape_.kv_dim();
  const int head_dim = shape_.head_dim;
  for (int i = 0; i < num_rows; ++i) {
    const int64_t position = block_index * kBlockTokens + first_slot + i;
    float* k_row = k + i * stride;
    float* v_row = v + i * stride;
    if (!w.bk.empty()) kernels_.add(k_row, w.bk.data(), kv_dim, k_row);
    if (!w.bv.empty()) kernels_.add(v_row, w.bv.data(), kv_dim, v_row);
    Turn(layer, k_row, shape_.n_kv_heads, w.k_norm, position);
  }
  for (int head = 0; head < shape_.n_kv_heads; ++head) {
    StoreKv(kernels_, k + head * head_dim, v + head * head_dim, stride,
            num_rows, head_dim, first_slot, block.k_tile(layer, head),
            block.v_tile(layer, head));
  }
}

void CpuForward::StoreKvRows(int layer, std::span<ForwardItem> items) {
  const CpuLayer& w = weights_.layers[static_cast<size_t>(layer)];
  const int kv_dim = shape_.kv_dim();
  const auto store_item = [&](int64_t i) {
    ForwardItem& item = items[static_cast<size_t>(i)];
    const int num_rows = static_cast<int>(item.tokens.size());
    float* rows = qkv_.data() + row_of_item_[static_cast<size_t>(i)] * qkv_dim_;
    float* k = rows + q_dim_;
    float* v = k + kv_dim;
    if (item.live_rows != nullptr) {
      float* k_pre = item.live_rows->k_pre(layer);
      float* v_pre = item.live_rows->v_pre(layer);
      for (int r = 0; r < num_rows && k_pre != nullptr; ++r) {
        const int64_t slot = item.live_tokens + r;
        std::copy_n(k + r * qkv_dim_, kv_dim, k_pre + slot * kv_dim);
        std::copy_n(v + r * qkv_dim_, kv_dim, v_pre + slot * kv_dim);
      }
    }
    StoreRows(layer, item.live_index(), item.live_tokens, num_rows, k, v,
              qkv_dim_, *item.live.back());
    for (int r = 0; r < num_rows; ++r) {
      float* q = rows + r * qkv_dim_;
      const int64_t position = item.first_position() + r;
      if (!w.bq.empty()) kernels_.add(q, w.bq.data(), q_dim_, q);
      Turn(layer, q, hparams_.n_heads, w.q_norm, position);
    }
  };
  const auto num_items = static_cast<int64_t>(items.size());
  if (rows_ < kMinParallelRows) {
    for (int64_t i = 0; i < num_items; ++i) store_item(i);
  } else {
    pool_.ParallelFor(num_items, [&](int64_t i, int) { store_item(i); });
  }
}

void CpuForward::PlanAttention(std::span<const ForwardItem> items) {
  attention_items_.clear();
  for (size_t i = 0; i < items.size(); ++i) {
    const ForwardItem& item = items[i];
    const int64_t row = row_of_item_[i];
    attention_items_.push_back(
        {static_cast<int>(item.tokens.size()),
         static_cast<int>(item.first_position()), item.sealed, item.live,
         qkv_.data() + row * qkv_dim_, attn_.data() + row * q_dim_});
  }
  attention_.Plan(attention_items_);
}

void CpuForward::GateUp(const CpuLayer& w) {
  const int d = hparams_.d_model;
  const int d_ff = hparams_.d_ff;
  const int rows = static_cast<int>(rows_);
  const Activations a{norm_.data(), d, QuantView(q_norm_, d)};
  if (Fusable(w.w_gate, w.w_up)) {
    const std::array matrices = {&w.w_gate};
    ForColumns(matrices, [&](size_t, int first, int last) {
      QuantGateUpArgs args;
      args.a = a.q;
      args.num_rows = rows;
      args.gate = w.w_gate.quant();
      args.up = w.w_up.quant();
      args.out = ff_.data();
      args.out_stride = d_ff;
      args.activation = hparams_.gelu ? Activation::kGelu : Activation::kSilu;
      kernels_.quant_gate_up(args, first / kPanelCols,
                             (last + kPanelCols - 1) / kPanelCols);
    });
    return;
  }
  Grow(up_, capacity_ * d_ff);
  const std::array matrices = {&w.w_gate, &w.w_up};
  ForColumns(matrices, [&](size_t i, int first, int last) {
    matrices[i]->Multiply(kernels_, a, rows, first, last, Epilogue::kStore,
                          i == 0 ? ff_.data() : up_.data(), d_ff);
  });
  const auto multiply = hparams_.gelu ? kernels_.gelu_mul : kernels_.silu_mul;
  ForRows([&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      multiply(ff_.data() + row * d_ff, up_.data() + row * d_ff, d_ff,
               ff_.data() + row * d_ff);
    }
  });
}

void CpuForward::AddProduct(const CpuMatrix& w, const Activations& a,
                            const std::vector<float>& gain) {
  const int d = hparams_.d_model;
  const bool add = gain.empty();
  const std::array matrices = {&w};
  ForColumns(matrices, [&](size_t, int first, int last) {
    w.Multiply(kernels_, a, static_cast<int>(rows_), first, last,
               add ? Epilogue::kAdd : Epilogue::kStore,
               add ? x_.data() : norm_.data(), d);
  });
  if (add) return;
  ForRows([&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      float* product = norm_.data() + row * d;
      kernels_.rms_norm(product, gain.data(), d, hparams_.rms_norm_eps, product,
                        nullptr);
      kernels_.add(x_.data() + row * d, product, d, x_.data() + row * d);
    }
  });
}

void CpuForward::Layer(int layer, std::span<ForwardItem> items) {
  const CpuLayer& w = weights_.layers[static_cast<size_t>(layer)];
  const int d = hparams_.d_model;
  const int d_ff = hparams_.d_ff;
  const int rows = static_cast<int>(rows_);

  NormRows(w.attn_norm,
           w.wq.quantized() || w.wk.quantized() || w.wv.quantized(), layer,
           items);
  const Activations normed{norm_.data(), d, QuantView(q_norm_, d)};
  const std::array qkv = {&w.wq, &w.wk, &w.wv};
  const int offsets[] = {0, q_dim_, q_dim_ + shape_.kv_dim()};
  ForColumns(qkv, [&](size_t i, int first, int last) {
    qkv[i]->Multiply(kernels_, normed, rows, first, last, Epilogue::kStore,
                     qkv_.data() + offsets[i], qkv_dim_);
  });

  StoreKvRows(layer, items);
  attention_.Run(layer);

  const Activations attended{attn_.data(), q_dim_, QuantView(q_attn_, q_dim_)};
  if (w.wo.quantized()) QuantizeAll(attn_.data(), q_dim_, attended.q);
  AddProduct(w.wo, attended, w.post_attn_norm);

  NormRows(w.ffn_norm, w.w_gate.quantized() || w.w_up.quantized(), -1, items);
  GateUp(w);
  const Activations activated{ff_.data(), d_ff, QuantView(q_ff_, d_ff)};
  if (w.w_down.quantized()) QuantizeAll(ff_.data(), d_ff, activated.q);
  AddProduct(w.w_down, activated, w.post_ffn_norm);
}

void CpuForward::Logits(std::span<ForwardItem> items) {
  const int d = hparams_.d_model;
  const int vocab = hparams_.vocab_size;
  TakeHidden(items);
  // Rows that nobody asks for are dropped: those kept move to the front.
  int64_t kept = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const size_t n = items[i].tokens.size();
    const size_t wanted = LogitRows(items[i].logits_mode, n);
    for (size_t r = n - wanted; r < n; ++r) {
      const int64_t row = row_of_item_[i] + static_cast<int64_t>(r);
      if (row != kept) {
        std::copy_n(x_.data() + row * d, d, x_.data() + kept * d);
      }
      ++kept;
    }
  }
  Grow(logits_, kept * vocab);
  rows_ = kept;
  if (kept > 0) {
    const CpuMatrix& w = weights_.output;
    NormRows(weights_.output_norm, w.quantized(), -1, items);
    const Activations a{norm_.data(), d, QuantView(q_norm_, d)};
    const std::array matrices = {&w};
    ForColumns(matrices, [&](size_t, int first, int last) {
      w.Multiply(kernels_, a, static_cast<int>(kept), first, last,
                 Epilogue::kStore, logits_.data(), vocab);
    });
  }
  const float* next = logits_.data();
  const float* next_hidden = hidden_.data();
  for (ForwardItem& item : items) {
    const size_t n = LogitRows(item.logits_mode, item.tokens.size());
    item.logits = {next, n * static_cast<size_t>(vocab)};
    next += item.logits.size();
    if (item.logits_mode != LogitsMode::kHidden) continue;
    item.hidden = {next_hidden, item.tokens.size() * static_cast<size_t>(d)};
    next_hidden += item.hidden.size();
  }
}

// Of the items that want them, in order; leaves all rows as they were.
void CpuForward::TakeHidden(std::span<ForwardItem> items) {
  const int d = hparams_.d_model;
  const bool wanted = std::any_of(items.begin(), items.end(), [](auto& item) {
    return item.logits_mode == LogitsMode::kHidden;
  });
  if (!wanted) return;
  NormRows(weights_.output_norm, /*quantize=*/false, -1, items);
  Grow(hidden_, rows_ * d);
  float* next = hidden_.data();
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i].logits_mode != LogitsMode::kHidden) continue;
    next = std::copy_n(norm_.data() + row_of_item_[i] * d,
                       static_cast<int64_t>(items[i].tokens.size()) * d, next);
  }
}

}  // namespace xcache
