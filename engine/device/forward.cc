#include "engine/device/forward.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/device/kernels/attention.h"
#include "engine/device/kv.h"

namespace xcache::cuda {
namespace {

// Strides of 16-byte multiples keep products on their fastest path.
int64_t PaddedVocab(int vocab) { return (int64_t{vocab} + 7) / 8 * 8; }

const DeviceKvBlock& BlockOf(const KvBlockRef& ref) {
  return static_cast<const DeviceKvBlock&>(*ref);
}

}  // namespace

DeviceForward::DeviceForward(const Model& model, const DeviceWeights& weights,
                             WeightProduct& product, DeviceOps& ops,
                             DeviceRemat& remat,
                             std::shared_ptr<DevicePool> pool,
                             size_t sums_bytes, const KvShape& shape)
    : hparams_(model.hparams()),
      weights_(weights),
      product_(product),
      ops_(ops),
      remat_(remat),
      pool_(std::move(pool)),
      sums_bytes_(sums_bytes),
      shape_(shape),
      q_dim_(hparams_.n_heads * hparams_.head_dim),
      qkv_dim_(q_dim_ + 2 * shape.kv_dim()),
      logits_stride_(PaddedVocab(hparams_.vocab_size)),
      x_(ops),
      norm_(ops),
      qkv_(ops),
      q_(ops),
      attn_(ops),
      ff_(ops),
      act_(ops),
      logits_(ops),
      partials_(ops),
      step_tiles_(ops),
      host_logits_(ops),
      host_hidden_(ops),
      tables_(ops),
      host_invalid_(ops) {}

absl::Status DeviceForward::Reserve(int64_t rows) {
  const auto n =
      static_cast<size_t>((rows + kGemmRows - 1) / kGemmRows) * kGemmRows;
  const auto d = static_cast<size_t>(hparams_.d_model);
  const auto d_ff = static_cast<size_t>(hparams_.d_ff);
  const auto q = static_cast<size_t>(q_dim_);
  XC_RETURN_IF_ERROR(x_.Reserve(n * d * sizeof(float)));
  XC_RETURN_IF_ERROR(norm_.Reserve(n * d * sizeof(uint16_t)));
  XC_RETURN_IF_ERROR(
      qkv_.Reserve(n * static_cast<size_t>(qkv_dim_) * sizeof(float)));
  XC_RETURN_IF_ERROR(q_.Reserve(n * q * sizeof(float)));
  XC_RETURN_IF_ERROR(attn_.Reserve(n * q * sizeof(uint16_t)));
  XC_RETURN_IF_ERROR(ff_.Reserve(n * 2 * d_ff * sizeof(float)));
  return act_.Reserve(n * d_ff * sizeof(uint16_t));
}

absl::Status DeviceForward::Plan(std::span<const DeviceForwardItem> items,
                                 int64_t kept) {
  std::vector<RowInfo> rows;
  std::vector<AttentionTask> tasks;
  int64_t partial_rows = 0;
  std::vector<BlockTable> blocks;
  std::vector<int32_t> kept_rows, hidden_rows;
  struct Payloads {
    std::vector<const uint8_t*> payloads;
    std::vector<size_t> blocks;  // whose tiles they become
    std::vector<BlockTarget> targets;
  };
  std::map<const DeviceCodec*, Payloads> payloads;
  const int group = hparams_.n_heads / shape_.n_kv_heads;
  const int64_t stride = LayerStride(shape_);
  for (const DeviceForwardItem& item : items) {
    AttentionTask task;
    task.row = static_cast<int32_t>(rows.size());
    task.num_tokens = static_cast<int32_t>(item.tokens.size());
    task.first_position = static_cast<int32_t>(item.first_position());
    task.first_block = static_cast<int64_t>(blocks.size());
    for (size_t b = 0; b < item.sealed.size(); ++b) {
      const DeviceKvBlock& block = BlockOf(item.sealed[b]);
      if (block.tiles() == nullptr) {
        Payloads& of = payloads[item.codec];
        of.payloads.push_back(block.payload());
        of.blocks.push_back(blocks.size());
        BlockTarget target;
        target.first_position = static_cast<int32_t>(b) * kBlockTokens;
        of.targets.push_back(target);
      }
      blocks.push_back({block.tiles(), stride});
    }
    blocks.push_back({item.live_tiles, stride});
    for (int i = 0; i < task.num_tokens; ++i) {
      RowInfo row;
      row.token = item.tokens[static_cast<size_t>(i)];
      row.position = task.first_position + i;
      row.slot = item.live_tokens + i;
      row.tiles = item.live_tiles;
      row.unit_x = item.unit_x;
      row.rms = item.rms;
      row.k_pre = item.k_pre;
      row.v_pre = item.v_pre;
      const auto at = static_cast<int32_t>(rows.size());
      if (item.logits_mode == LogitsMode::kAll ||
          (item.logits_mode == LogitsMode::kLast && i + 1 == task.num_tokens)) {
        kept_rows.push_back(at);
      } else if (item.logits_mode == LogitsMode::kHidden) {
        hidden_rows.push_back(at);
      }
      rows.push_back(row);
    }
    const int last_position = task.first_position + task.num_tokens - 1;
    task.num_chunks = last_position / (kChunkTiles * kBlockTokens) + 1;
    for (task.first_query = 0; task.first_query < task.num_tokens * group;
         task.first_query += kAttentionRows) {
      for (task.chunk = 0; task.chunk < task.num_chunks; ++task.chunk) {
        task.partial_row = partial_rows;
        partial_rows += QueryRows(task, group);
        tasks.push_back(task);
      }
    }
  }

  size_t num_payloads = 0;
  for (const auto& [codec, of] : payloads) num_payloads += of.payloads.size();
  XC_RETURN_IF_ERROR(step_tiles_.Reserve(
      num_payloads * static_cast<size_t>(stride) * sizeof(uint16_t)));
  uint16_t* next_tiles = step_tiles_.as<uint16_t>();
  tables_.Clear();
  payload_groups_.clear();
  for (auto& [codec, of] : payloads) {
    for (size_t i = 0; i < of.targets.size(); ++i, next_tiles += stride) {
      of.targets[i].tiles = next_tiles;
      blocks[of.blocks[i]] = {next_tiles, 0};
    }
    PayloadGroup g;
    g.codec = codec;
    g.num_blocks = static_cast<int>(of.payloads.size());
    g.payloads = tables_.Add(of.payloads);
    g.targets = tables_.Add(of.targets);
    g.invalid = tables_.Add(std::vector<int32_t>(of.payloads.size()));
    payload_groups_.push_back(std::move(g));
    XC_RETURN_IF_ERROR(remat_.Reserve(codec));
  }
  rows_at_ = tables_.Add(rows);
  tasks_at_ = tables_.Add(tasks);
  blocks_at_ = tables_.Add(blocks);
  num_hidden_ = std::ssize(hidden_rows);
  kept_rows.insert(kept_rows.end(), hidden_rows.begin(), hidden_rows.end());
  kept_at_ = tables_.Add(kept_rows);
  num_tasks_ = static_cast<int>(tasks.size());

  XC_RETURN_IF_ERROR(partials_.Reserve(
      static_cast<size_t>(partial_rows * shape_.n_kv_heads) *
      static_cast<size_t>(PartialRowFloats(shape_.head_dim)) * sizeof(float)));
  const auto padded =
      static_cast<size_t>((kept + kGemmRows - 1) / kGemmRows) * kGemmRows;
  const size_t row_bytes = static_cast<size_t>(logits_stride_) * sizeof(float);
  XC_RETURN_IF_ERROR(logits_.Reserve(padded * row_bytes));
  XC_RETURN_IF_ERROR(
      host_logits_.Reserve(static_cast<size_t>(kept) * row_bytes));
  XC_RETURN_IF_ERROR(host_hidden_.Reserve(
      static_cast<size_t>(num_hidden_ * hparams_.d_model) * sizeof(uint16_t)));
  return tables_.Upload();
}

absl::Status DeviceForward::Run(std::span<DeviceForwardItem> items) {
  int64_t rows = 0, positions = 0, kept = 0;
  for (const DeviceForwardItem& item : items) {
    const auto n = static_cast<int64_t>(item.tokens.size());
    rows += n;
    positions = std::max(positions, item.first_position() + n);
    kept +=
        static_cast<int64_t>(LogitRows(item.logits_mode, item.tokens.size()));
  }
  if (rows == 0) return absl::OkStatus();
  rows_ = static_cast<int>(rows);
  XC_RETURN_IF_ERROR(Reserve(rows));
  XC_RETURN_IF_ERROR(remat_.ExtendRope(positions));
  XC_RETURN_IF_ERROR(Plan(items, kept));
  TakeSums();

  EmbedArgs embed;
  embed.rows = tables_.At<RowInfo>(rows_at_);
  const DeviceMatrixPart& table = weights_.embedding().parts[0];
  embed.table = table.bf16;
  embed.quantized = table.quantized;
  embed.out = x_.as<float>();
  embed.num_rows = rows_;
  embed.width = hparams_.d_model;
  ops_.Embed(embed);
  for (int layer = 0; layer < hparams_.num_layers; ++layer) Layer(layer);
  if (kept + num_hidden_ > 0) Outputs(kept);
  const absl::Status status = CheckPayloads();
  ops_.Synchronize(StreamId::kCompute);
  payload_groups_.clear();  // and their sums

  const auto vocab = static_cast<size_t>(hparams_.vocab_size);
  const auto stride = static_cast<size_t>(logits_stride_);
  const float* next = host_logits_.as<float>();
  if (stride != vocab) {
    packed_logits_.resize(static_cast<size_t>(kept) * vocab);
    for (size_t r = 0; r < static_cast<size_t>(kept); ++r) {
      std::copy_n(next + r * stride, vocab, packed_logits_.data() + r * vocab);
    }
    next = packed_logits_.data();
  }
  for (DeviceForwardItem& item : items) {
    const size_t n = LogitRows(item.logits_mode, item.tokens.size());
    item.logits = {next, n * vocab};
    next += item.logits.size();
  }
  const auto d = static_cast<size_t>(hparams_.d_model);
  const std::span<const uint16_t> bf16(host_hidden_.as<uint16_t>(),
                                       static_cast<size_t>(num_hidden_) * d);
  hidden_.resize(bf16.size());
  for (size_t i = 0; i < bf16.size(); ++i) {
    hidden_[i] = std::bit_cast<float>(uint32_t{bf16[i]} << 16);
  }
  std::span<const float> hidden = hidden_;
  for (DeviceForwardItem& item : items) {
    if (item.logits_mode != LogitsMode::kHidden) continue;
    item.hidden = hidden.first(item.tokens.size() * d);
    hidden = hidden.subspan(item.hidden.size());
  }
  return status;
}

absl::Status DeviceForward::CheckPayloads() {
  size_t total = 0;
  for (const PayloadGroup& g : payload_groups_) {
    total += static_cast<size_t>(g.num_blocks);
  }
  if (total == 0) return absl::OkStatus();
  XC_RETURN_IF_ERROR(host_invalid_.Reserve(total * sizeof(int32_t)));
  auto* to = host_invalid_.as<int32_t>();
  for (const PayloadGroup& g : payload_groups_) {
    ops_.CopyToHost(StreamId::kCompute, to, tables_.At<int32_t>(g.invalid),
                    static_cast<size_t>(g.num_blocks) * sizeof(int32_t));
    to += g.num_blocks;
  }
  ops_.Synchronize(StreamId::kCompute);
  const auto* flags = host_invalid_.as<int32_t>();
  if (std::any_of(flags, flags + total, [](int32_t f) { return f != 0; })) {
    return absl::InternalError("a block's payload holds invalid scales");
  }
  return absl::OkStatus();
}

void DeviceForward::TakeSums() {
  size_t left = sums_bytes_;
  for (PayloadGroup& g : payload_groups_) {
    const size_t bytes = DeviceRemat::SumsBytes(*g.codec);
    if (bytes == 0) continue;
    for (int first = 0; first < g.num_blocks && bytes <= left;
         first += kRematBlocks) {
      PoolPiece piece(pool_, bytes);
      if (piece.get() == nullptr) break;
      g.sums.push_back(std::move(piece));
      left -= bytes;
    }
  }
}

void DeviceForward::RematPayloads(int layer) {
  for (const PayloadGroup& g : payload_groups_) {
    for (int first = 0; first < g.num_blocks; first += kRematBlocks) {
      RematBatch batch;
      batch.num_blocks = std::min(kRematBlocks, g.num_blocks - first);
      batch.payloads = tables_.At<const uint8_t*>(g.payloads) + first;
      batch.targets = tables_.At<BlockTarget>(g.targets) + first;
      batch.invalid = tables_.At<int32_t>(g.invalid) + first;
      const auto run = static_cast<size_t>(first / kRematBlocks);
      if (g.codec->sums_width() == 0) {
        remat_.Layer(*g.codec, layer, batch);
      } else if (run < g.sums.size()) {
        remat_.Layer(*g.codec, layer, batch,
                     static_cast<float*>(g.sums[run].get()));
      } else {
        remat_.LayerFromFirst(*g.codec, layer, batch);
      }
    }
  }
}

void DeviceForward::Norm(const float* gain, int layer, const int32_t* row_index,
                         int rows) {
  RmsNormArgs args;
  args.x = x_.as<float>();
  args.row_index = row_index;
  args.rows = layer >= 0 ? tables_.At<RowInfo>(rows_at_) : nullptr;
  args.gain = gain;
  args.out = norm_.as<uint16_t>();
  args.eps = hparams_.rms_norm_eps;
  args.num_rows = rows;
  args.width = hparams_.d_model;
  args.layer = layer;
  ops_.RmsNorm(args);
}

void DeviceForward::Layer(int layer) {
  const DeviceLayer& w = weights_.layer(layer);
  const int d = hparams_.d_model;
  RematPayloads(layer);
  Norm(w.attn_norm, layer, nullptr, rows_);
  product_.Run(norm_.as<uint16_t>(), w.w_qkv, qkv_.as<float>(), qkv_dim_, false,
               rows_);

  StoreKvArgs store = remat_.StoreArgs(layer);
  store.rows = tables_.At<RowInfo>(rows_at_);
  store.q = qkv_.as<float>();
  store.q_stride = qkv_dim_;
  store.q_out = q_.as<float>();
  store.k = qkv_.as<float>() + q_dim_;
  store.v = store.k + shape_.kv_dim();
  store.kv_stride = qkv_dim_;
  store.num_rows = rows_;
  ops_.StoreKv(store);

  AttentionArgs attention;
  attention.tasks = tables_.At<AttentionTask>(tasks_at_);
  attention.blocks = tables_.At<BlockTable>(blocks_at_);
  attention.q = q_.as<float>();
  attention.partials = partials_.as<float>();
  attention.out = attn_.as<uint16_t>();
  attention.layout = LayoutOf(shape_);
  attention.group = hparams_.n_heads / shape_.n_kv_heads;
  attention.layer = layer;
  attention.num_tasks = num_tasks_;
  attention.scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
  ops_.Attend(attention);
  product_.Run(attn_.as<uint16_t>(), w.w_o, x_.as<float>(), d, true, rows_);

  Norm(w.ffn_norm, -1, nullptr, rows_);
  product_.Run(norm_.as<uint16_t>(), w.w_gate_up, ff_.as<float>(),
               2 * hparams_.d_ff, false, rows_);
  SiluMulArgs silu;
  silu.gate_up = ff_.as<float>();
  silu.out = act_.as<uint16_t>();
  silu.num_rows = rows_;
  silu.width = hparams_.d_ff;
  ops_.SiluMul(silu);
  product_.Run(act_.as<uint16_t>(), w.w_down, x_.as<float>(), d, true, rows_);
}

void DeviceForward::Outputs(int64_t kept) {
  const int64_t d = hparams_.d_model;
  Norm(weights_.output_norm(), -1, tables_.At<int32_t>(kept_at_),
       static_cast<int>(kept + num_hidden_));
  if (kept > 0) {
    product_.Run(norm_.as<uint16_t>(), weights_.output(), logits_.as<float>(),
                 logits_stride_, false, static_cast<int>(kept));
    ops_.CopyToHost(StreamId::kCompute, host_logits_.as<void>(),
                    logits_.as<void>(),
                    static_cast<size_t>(kept * logits_stride_) * sizeof(float));
  }
  if (num_hidden_ > 0) {
    ops_.CopyToHost(StreamId::kCompute, host_hidden_.as<void>(),
                    norm_.as<uint16_t>() + kept * d,
                    static_cast<size_t>(num_hidden_ * d) * sizeof(uint16_t));
  }
}

}  // namespace xcache::cuda
