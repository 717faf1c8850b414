#include "engine/cuda/device_weights.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/cuda/device_math.h"

namespace xcache::cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kStagingBytes = size_t{16} << 20;

size_t RoundUp(size_t n) {
  return (n + kAlignment - 1) / kAlignment * kAlignment;
}

// One piece of the weights: where it goes, and the tensors it is made of.
struct Piece {
  std::vector<TensorView> tensors;  // rows one after another
  const uint16_t** matrix = nullptr;
  const float** vector = nullptr;
  size_t offset = 0;
};

int64_t Rows(const Piece& piece) {
  int64_t rows = 0;
  for (const TensorView& t : piece.tensors) rows += t.rows;
  return rows;
}

}  // namespace

size_t UploadStagingBytes(int64_t cols) {
  return std::max(kStagingBytes, static_cast<size_t>(cols) * sizeof(uint16_t));
}

void UploadRows(DeviceOps& ops, ThreadPool& pool, PinnedMemory& staging,
                int64_t rows, int64_t cols, HalfType type,
                const std::function<void(int64_t row, float* out)>& fill,
                uint16_t* to) {
  const size_t row_bytes = static_cast<size_t>(cols) * sizeof(uint16_t);
  const auto run = static_cast<int64_t>(staging.bytes() / row_bytes);
  for (int64_t first = 0; first < rows; first += run) {
    const int64_t n = std::min(run, rows - first);
    pool.ParallelFor(n, [&](int64_t i, int) {
      std::vector<float> row(static_cast<size_t>(cols));
      fill(first + i, row.data());
      uint16_t* out = staging.as<uint16_t>() + i * cols;
      for (size_t c = 0; c < row.size(); ++c) {
        out[c] = type == HalfType::kBf16 ? F32ToBf16(row[c]) : F32ToF16(row[c]);
      }
    });
    ops.CopyToDevice(StreamId::kCompute, to + first * cols,
                     staging.as<uint16_t>(),
                     static_cast<size_t>(n) * row_bytes);
    ops.Synchronize(StreamId::kCompute);
  }
}

absl::StatusOr<std::unique_ptr<DeviceWeights>> DeviceWeights::Create(
    const Model& model, DeviceOps& ops, ThreadPool& pool,
    const ProgressFn& progress) {
  std::unique_ptr<DeviceWeights> weights(new DeviceWeights(ops));
  weights->layers_.resize(static_cast<size_t>(model.hparams().num_layers));
  std::vector<Piece> pieces;
  const auto matrix = [&](std::vector<TensorView> tensors,
                          const uint16_t** to) {
    pieces.push_back({std::move(tensors), to, nullptr, 0});
  };
  const auto vector = [&](const std::optional<TensorView>& tensor,
                          const float** to) {
    if (tensor.has_value()) pieces.push_back({{*tensor}, nullptr, to, 0});
  };
  matrix({model.token_embd()}, &weights->embedding_);
  for (int i = 0; i < model.hparams().num_layers; ++i) {
    const LayerTensors& from = model.layer(i);
    DeviceLayer& to = weights->layers_[static_cast<size_t>(i)];
    vector(from.attn_norm, &to.attn_norm);
    vector(from.ffn_norm, &to.ffn_norm);
    vector(from.bq, &to.bq);
    vector(from.bk, &to.bk);
    vector(from.bv, &to.bv);
    matrix({from.wq, from.wk, from.wv}, &to.w_qkv);
    matrix({from.wo}, &to.w_o);
    matrix({from.w_gate, from.w_up}, &to.w_gate_up);
    matrix({from.w_down}, &to.w_down);
  }
  vector(model.output_norm(), &weights->output_norm_);
  const bool tied =
      model.output().bytes.data() == model.token_embd().bytes.data();
  if (!tied) matrix({model.output()}, &weights->output_);

  size_t total = 0;
  int64_t widest = 1;
  for (Piece& piece : pieces) {
    piece.offset = total;
    const size_t element =
        piece.matrix != nullptr ? sizeof(uint16_t) : sizeof(float);
    const int64_t cols = piece.tensors[0].cols;
    widest = std::max(widest, cols);
    total += RoundUp(static_cast<size_t>(Rows(piece) * cols) * element);
  }
  if (!weights->memory_.Reserve(total).ok()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "weights as BF16 need ", total, " bytes of device memory, free are ",
        ops.info().free_bytes));
  }
  PinnedMemory staging(ops);
  XC_RETURN_IF_ERROR(staging.Reserve(UploadStagingBytes(2 * widest)));
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    uint8_t* to = weights->memory_.as<uint8_t>() + piece.offset;
    const int64_t cols = piece.tensors[0].cols;
    if (piece.vector != nullptr) {
      DequantizeRow(piece.tensors[0], 0, staging.as<float>());
      ops.CopyToDevice(StreamId::kCompute, to, staging.as<float>(),
                       static_cast<size_t>(cols) * sizeof(float));
      ops.Synchronize(StreamId::kCompute);
      *piece.vector = reinterpret_cast<const float*>(to);
    } else {
      const auto fill = [&](int64_t row, float* out) {
        size_t t = 0;
        while (row >= piece.tensors[t].rows) row -= piece.tensors[t++].rows;
        DequantizeRow(piece.tensors[t], row, out);
      };
      UploadRows(ops, pool, staging, Rows(piece), cols, HalfType::kBf16, fill,
                 reinterpret_cast<uint16_t*>(to));
      *piece.matrix = reinterpret_cast<const uint16_t*>(to);
    }
    if (progress) {
      progress("uploading weights",
               static_cast<double>(i + 1) / static_cast<double>(pieces.size()));
    }
  }
  if (tied) weights->output_ = weights->embedding_;
  return weights;
}

}  // namespace xcache::cuda
