#include "engine/device/weights.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/device/kernels/math.h"
#include "engine/device/kernels/weight_blocks.h"

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
  DeviceMatrix* matrix = nullptr;
  const float** vector = nullptr;
};

// Tensors of a piece that are held alike, one below the other in memory.
struct Part {
  size_t piece = 0;
  std::vector<TensorView> tensors;
  WeightType type = WeightType::kBf16;
  size_t offset = 0;
};

int64_t Rows(const std::vector<TensorView>& tensors) {
  int64_t rows = 0;
  for (const TensorView& t : tensors) rows += t.rows;
  return rows;
}

// The parts of all pieces, and the bytes that they take together.
std::vector<Part> PlaceParts(const std::vector<Piece>& pieces, bool quantized,
                             size_t* total) {
  std::vector<Part> parts;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const size_t first = parts.size();
    for (const TensorView& t : pieces[i].tensors) {
      const WeightType type = quantized && pieces[i].matrix != nullptr
                                  ? WeightTypeOf(t.type)
                                  : WeightType::kBf16;
      if (parts.size() == first || parts.back().type != type) {
        parts.push_back({i, {}, type, 0});
      }
      parts.back().tensors.push_back(t);
    }
  }
  *total = 0;
  for (Part& part : parts) {
    const int64_t cols = part.tensors[0].cols;
    int64_t row_bytes = cols * static_cast<int64_t>(sizeof(uint16_t));
    if (part.type != WeightType::kBf16) {
      row_bytes = QuantizedRowBytes(part.type, cols);
    } else if (pieces[part.piece].vector != nullptr) {
      row_bytes = cols * static_cast<int64_t>(sizeof(float));
    }
    part.offset = *total;
    *total += RoundUp(static_cast<size_t>(Rows(part.tensors) * row_bytes));
  }
  return parts;
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

std::optional<WeightPolicy> ParseWeightPolicy(std::string_view name) {
  if (name == "auto") return WeightPolicy::kAuto;
  if (name == "bf16") return WeightPolicy::kBf16;
  if (name == "quantized") return WeightPolicy::kQuantized;
  return std::nullopt;
}

WeightType WeightTypeOf(GgufType type) {
  switch (type) {
    case GgufType::kQ4_0:
      return WeightType::kQ4_0;
    case GgufType::kQ4_1:
      return WeightType::kQ4_1;
    case GgufType::kQ5_0:
      return WeightType::kQ5_0;
    case GgufType::kQ5_1:
      return WeightType::kQ5_1;
    case GgufType::kQ8_0:
      return WeightType::kQ8_0;
    case GgufType::kQ4_K:
      return WeightType::kQ4_K;
    case GgufType::kQ5_K:
      return WeightType::kQ5_K;
    case GgufType::kQ6_K:
      return WeightType::kQ6_K;
    case GgufType::kQ2_K:
    case GgufType::kQ3_K:
    case GgufType::kIQ4_NL:
    case GgufType::kIQ4_XS:
    case GgufType::kF32:
    case GgufType::kF16:
    case GgufType::kBF16:
      break;
  }
  return WeightType::kBf16;
}

void UploadBlocks(DeviceOps& ops, ThreadPool& pool, PinnedMemory& staging,
                  const TensorView& tensor, uint8_t* to) {
  const WeightType type = WeightTypeOf(tensor.type);
  const auto bytes = static_cast<size_t>(WeightBytes(type, tensor.cols));
  const auto stride = static_cast<size_t>(QuantizedRowBytes(type, tensor.cols));
  const auto run = static_cast<int64_t>(staging.bytes() / stride);
  for (int64_t first = 0; first < tensor.rows; first += run) {
    const int64_t n = std::min(run, tensor.rows - first);
    pool.ParallelFor(n, [&](int64_t i, int) {
      const auto row = static_cast<size_t>(i);
      uint8_t* out = staging.as<uint8_t>() + row * stride;
      std::memcpy(
          out, tensor.bytes.data() + (static_cast<size_t>(first) + row) * bytes,
          bytes);
      std::fill(out + bytes, out + stride, uint8_t{0});
    });
    ops.CopyToDevice(StreamId::kCompute,
                     to + static_cast<size_t>(first) * stride,
                     staging.as<uint8_t>(), static_cast<size_t>(n) * stride);
    ops.Synchronize(StreamId::kCompute);
  }
}

absl::StatusOr<std::unique_ptr<DeviceWeights>> DeviceWeights::Create(
    const Model& model, DeviceOps& ops, WeightPolicy policy, ThreadPool& pool,
    const ProgressFn& progress) {
  std::unique_ptr<DeviceWeights> weights(new DeviceWeights(ops));
  weights->layers_.resize(static_cast<size_t>(model.hparams().num_layers));
  std::vector<Piece> pieces;
  int64_t widest = 1;
  const auto matrix = [&](std::vector<TensorView> tensors, DeviceMatrix* to) {
    to->cols = static_cast<int>(tensors[0].cols);
    widest = std::max(widest, tensors[0].cols);
    pieces.push_back({std::move(tensors), to, nullptr});
  };
  const auto vector = [&](const std::optional<TensorView>& tensor,
                          const float** to) {
    if (!tensor.has_value()) return;
    widest = std::max(widest, tensor->cols);
    pieces.push_back({{*tensor}, nullptr, to});
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

  const size_t free_bytes = ops.info().free_bytes;
  size_t bf16_bytes = 0, quantized_bytes = 0;
  std::vector<Part> parts = PlaceParts(pieces, false, &bf16_bytes);
  std::vector<Part> in_blocks = PlaceParts(pieces, true, &quantized_bytes);
  const bool quantized =
      policy == WeightPolicy::kQuantized ||
      (policy == WeightPolicy::kAuto && bf16_bytes > free_bytes / 2);
  if (quantized) parts = std::move(in_blocks);
  if (!weights->memory_.Reserve(quantized ? quantized_bytes : bf16_bytes)
           .ok()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "weights need ", bf16_bytes, " bytes of device memory as BF16 and ",
        quantized_bytes, " quantized, free are ", free_bytes, "; they were to ",
        quantized ? "stay quantized" : "be BF16"));
  }
  XC_LOG_INFO("weights go to device memory",
              "form={} bytes={} bf16_bytes={} free_bytes={}",
              quantized_bytes < bf16_bytes && quantized ? "quantized" : "bf16",
              weights->memory_.bytes(), bf16_bytes, free_bytes);
  PinnedMemory staging(ops);
  XC_RETURN_IF_ERROR(staging.Reserve(UploadStagingBytes(2 * widest)));
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    const Piece& piece = pieces[part.piece];
    uint8_t* to = weights->memory_.as<uint8_t>() + part.offset;
    const int64_t cols = part.tensors[0].cols;
    const int64_t rows = Rows(part.tensors);
    if (piece.vector != nullptr) {
      DequantizeRow(part.tensors[0], 0, staging.as<float>());
      ops.CopyToDevice(StreamId::kCompute, to, staging.as<float>(),
                       static_cast<size_t>(cols) * sizeof(float));
      ops.Synchronize(StreamId::kCompute);
      *piece.vector = reinterpret_cast<const float*>(to);
    } else {
      DeviceMatrixPart held;
      if (!piece.matrix->parts.empty()) {
        const DeviceMatrixPart& above = piece.matrix->parts.back();
        held.first_row = above.first_row + above.num_rows;
      }
      held.num_rows = static_cast<int>(rows);
      if (part.type == WeightType::kBf16) {
        const auto fill = [&](int64_t row, float* out) {
          size_t t = 0;
          while (row >= part.tensors[t].rows) row -= part.tensors[t++].rows;
          DequantizeRow(part.tensors[t], row, out);
        };
        held.bf16 = reinterpret_cast<const uint16_t*>(to);
        UploadRows(ops, pool, staging, rows, cols, HalfType::kBf16, fill,
                   reinterpret_cast<uint16_t*>(to));
      } else {
        held.quantized = {to, QuantizedRowBytes(part.type, cols), part.type};
        weights->quantized_ = true;
        for (const TensorView& t : part.tensors) {
          UploadBlocks(ops, pool, staging, t, to);
          to += t.rows * held.quantized.row_bytes;
        }
      }
      piece.matrix->parts.push_back(held);
    }
    if (progress) {
      progress("uploading weights",
               static_cast<double>(i + 1) / static_cast<double>(parts.size()));
    }
  }
  if (tied) weights->output_ = weights->embedding_;
  return weights;
}

std::vector<const DeviceMatrix*> DeviceWeights::matrices() const {
  std::vector<const DeviceMatrix*> all = {&output_};
  for (const DeviceLayer& layer : layers_) {
    all.insert(all.end(),
               {&layer.w_qkv, &layer.w_o, &layer.w_gate_up, &layer.w_down});
  }
  return all;
}

}  // namespace xcache::cuda
