#include "engine/kernels/packed.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/kernels/scalar_math.h"

namespace xcache {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

AlignedBytes::AlignedBytes(size_t num_bytes) : size_(num_bytes) {
  if (num_bytes == 0) return;
  const size_t alignment = num_bytes >= kHugePage ? kHugePage : 64;
  const size_t rounded = (num_bytes + alignment - 1) / alignment * alignment;
  data_.reset(static_cast<uint8_t*>(std::aligned_alloc(alignment, rounded)));
  if (data_ == nullptr) std::abort();  // as operator new would end it
  // Weights are read from end to end for every token: fewer TLB misses. Where
  // the kernel refuses, nothing is lost.
  if (alignment == kHugePage) madvise(data_.get(), rounded, MADV_HUGEPAGE);
}

uint8_t* WeightArena::Allocate(size_t num_bytes) {
  constexpr size_t kSlab = 16 * kHugePage;
  num_bytes = (num_bytes + 63) / 64 * 64;
  MutexLock lock(mu_);
  if (slabs_.empty() || slabs_.back().size() - used_ < num_bytes) {
    slabs_.emplace_back(std::max(num_bytes, kSlab));
    used_ = 0;
  }
  uint8_t* result = slabs_.back().data() + used_;
  used_ += num_bytes;
  return result;
}

size_t WeightArena::bytes() const {
  MutexLock lock(mu_);
  size_t total = 0;
  for (const AlignedBytes& slab : slabs_) total += slab.size();
  return total;
}

namespace {

// Zeroed memory for a matrix, in `arena` or, where that is null, in `own`.
uint8_t* MatrixMemory(size_t num_bytes, WeightArena* arena, AlignedBytes* own) {
  if (arena == nullptr) *own = AlignedBytes(num_bytes);
  uint8_t* data = arena == nullptr ? own->data() : arena->Allocate(num_bytes);
  std::memset(data, 0, num_bytes);
  return data;
}

bool ExactInF16(float x) {
  return std::isfinite(x) && F16ToF32(F32ToF16(x)) == x;
}

// Writes column `c`'s 32 codes into a block's chunks (quant_matmul.h).
void PlaceCodes(const uint8_t* codes, bool u8, int c, uint8_t* block) {
  for (int k = 0; k < kQuantBlock; ++k) {
    if (u8) {
      block[k / 4 * 64 + c * 4 + k % 4] = codes[k];
    } else {
      uint8_t& byte = block[k / 8 * 64 + c * 4 + k % 4];
      const int shift = k % 8 < 4 ? 0 : 4;
      byte = static_cast<uint8_t>(byte | codes[k] << shift);
    }
  }
}

void PlaceScale(float value, bool f32, int index, uint8_t* scales) {
  if (f32) {
    std::memcpy(scales + index * 4, &value, 4);
  } else {
    const uint16_t half = F32ToF16(value);
    std::memcpy(scales + index * 2, &half, 2);
  }
}

}  // namespace

absl::StatusOr<PackedMatrix> PackedMatrix::Pack(int rows, int cols,
                                                const QuantFormat& format,
                                                const BlockFn& blocks,
                                                WeightArena* arena) {
  if (rows < 1 || cols < 1 || cols % kQuantBlock != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a quantized matrix is ", rows, " x ", cols,
        ": expected at least one row and columns in a multiple of ",
        kQuantBlock));
  }
  if ((format.bits != 4 && format.bits != 8) || format.offset < 0 ||
      format.offset > 128 || (format.has_min && format.offset != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("no such format: ", format.bits, " bits, offset ",
                     format.offset, format.has_min ? " and a minimum" : ""));
  }
  PackedMatrix result;
  QuantMatrix& view = result.view_;
  view.rows = rows;
  view.cols = cols;
  view.u8 = format.bits == 8;
  view.f32_scales = format.f32_scales;
  view.has_min = format.has_min;
  view.offset = format.offset;
  const int num_blocks = cols / kQuantBlock;
  const int64_t code_bytes = view.u8 ? 512 : 256;
  const int64_t scale_bytes =
      (view.f32_scales ? 64 : 32) * (view.has_min ? 2 : 1);
  view.panel_bytes = (num_blocks * (code_bytes + scale_bytes) + 63) / 64 * 64;
  uint8_t* data = MatrixMemory(result.bytes(), arena, &result.storage_);
  view.data = data;

  for (int row = 0; row < rows; ++row) {
    uint8_t* panel = data + row / kPanelCols * view.panel_bytes;
    const int c = row % kPanelCols;
    for (int b = 0; b < num_blocks; ++b) {
      WeightBlock block;
      blocks(row, b, &block);
      const uint8_t max_code =
          *std::max_element(block.codes, block.codes + kQuantBlock);
      if (max_code >= 1 << format.bits) {
        return absl::InvalidArgumentError(
            absl::StrCat("row ", row, " block ", b, ": code ", max_code,
                         " does not fit ", format.bits, " bits"));
      }
      const bool scales_fit =
          format.f32_scales ? std::isfinite(block.d) && std::isfinite(block.m)
                            : ExactInF16(block.d) && ExactInF16(block.m);
      if (!scales_fit || (!format.has_min && block.m != 0.0f)) {
        return absl::InvalidArgumentError(
            absl::StrCat("row ", row, " block ", b, ": scale ", block.d,
                         ", minimum ", block.m, " cannot be kept exactly in ",
                         format.f32_scales ? "FP32" : "FP16",
                         format.has_min ? "" : " without a minimum"));
      }
      PlaceCodes(block.codes, view.u8, c, panel + b * code_bytes);
      uint8_t* scales = panel + num_blocks * code_bytes + b * scale_bytes;
      PlaceScale(block.d, view.f32_scales, c, scales);
      if (view.has_min) {
        PlaceScale(block.m, view.f32_scales, kPanelCols + c, scales);
      }
    }
  }
  return result;
}

void RequantizeBlock(const float* weights, WeightBlock* out) {
  float amax = 0.0f;
  for (int i = 0; i < kQuantBlock; ++i) {
    amax = std::max(amax, std::fabs(weights[i]));
  }
  out->d = amax / 127.0f;
  out->m = 0.0f;
  const float inverse = amax < kQuantTiny ? 0.0f : 127.0f / amax;
  for (int i = 0; i < kQuantBlock; ++i) {
    const float code = (weights[i] * inverse + kRoundMagic) - kRoundMagic;
    out->codes[i] = static_cast<uint8_t>(static_cast<int>(code) + 128);
  }
}

namespace {

int PaddedCols(int n) { return (n + kPanelCols - 1) / kPanelCols * kPanelCols; }

// Where element (k, n) of a packed B stands.
int64_t FloatIndex(const FloatMatrix& view, int k, int n) {
  const int panel = n / kFloatPanelCols;
  const int width =
      std::min(kFloatPanelCols, PaddedCols(view.n) - panel * kFloatPanelCols);
  return static_cast<int64_t>(panel) * kFloatPanelCols * view.k +
         static_cast<int64_t>(k) * width + n % kFloatPanelCols;
}

void PlaceFloat(float value, FloatType type, int64_t index, uint8_t* data) {
  if (type == FloatType::kF32) {
    std::memcpy(data + index * 4, &value, 4);
    return;
  }
  const uint16_t half =
      type == FloatType::kF16 ? F32ToF16(value) : F32ToBf16(value);
  std::memcpy(data + index * 2, &half, 2);
}

}  // namespace

absl::StatusOr<PackedFloat> PackedFloat::FromWeightRows(
    int rows, int cols, FloatType type,
    const std::function<void(int row, float* out)>& fill, WeightArena* arena) {
  if (cols < 1 || rows < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a matrix has k = ", cols, ", n = ", rows,
                     ": expected both to be positive"));
  }
  PackedFloat result;
  result.view_ = {.k = cols, .n = rows, .type = type, .data = nullptr};
  uint8_t* data = MatrixMemory(result.bytes(), arena, &result.storage_);
  result.view_.data = data;
  std::vector<float> row_values(static_cast<size_t>(cols));
  for (int row = 0; row < rows; ++row) {
    fill(row, row_values.data());
    for (int k = 0; k < cols; ++k) {
      PlaceFloat(row_values[static_cast<size_t>(k)], type,
                 FloatIndex(result.view_, k, row), data);
    }
  }
  return result;
}

absl::StatusOr<PackedFloat> PackedFloat::FromMatrix(const float* b, int k,
                                                    int n, int64_t k_stride,
                                                    int64_t n_stride) {
  return FromWeightRows(n, k, FloatType::kF32, [&](int row, float* out) {
    for (int i = 0; i < k; ++i) out[i] = b[i * k_stride + row * n_stride];
  });
}

absl::StatusOr<PackedInt> PackedInt::Make(int k, int n, IntType type) {
  if (k < 1 || n < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a matrix has k = ", k, ", n = ", n, ": expected both to be positive"));
  }
  PackedInt result;
  IntMatrix& view = result.view_;
  view = {.k = k, .n = n, .type = type};
  const size_t columns =
      static_cast<size_t>(NumPanels(view)) * size_t{kIntPanelCols};
  view.data = MatrixMemory(columns * static_cast<size_t>(result.row_bytes()),
                           nullptr, &result.storage_);
  if (type == IntType::kI8) {
    result.col_sums_.resize(columns);
    view.col_sums = result.col_sums_.data();
  }
  return result;
}

void PackedInt::Place(int row, int column, int16_t value) {
  const int per_step = view_.type == IntType::kI16 ? 2 : 4;
  const int64_t step =
      int64_t{column / kIntPanelCols} * NumSteps(view_) + row / per_step;
  uint8_t* four =
      storage_.data() + (step * kIntPanelCols + column % kIntPanelCols) * 4;
  if (view_.type == IntType::kI16) {
    reinterpret_cast<int16_t*>(four)[row % 2] = value;
  } else {
    reinterpret_cast<int8_t*>(four)[row % 4] = static_cast<int8_t>(value);
    col_sums_[static_cast<size_t>(column)] += value;
  }
}

absl::StatusOr<PackedInt> PackedInt::FromRows(
    int k, int n, IntType type,
    const std::function<void(int row, int16_t* out)>& fill) {
  XC_ASSIGN_OR_RETURN(PackedInt result, Make(k, n, type));
  std::vector<int16_t> values(static_cast<size_t>(n));
  for (int row = 0; row < k; ++row) {
    fill(row, values.data());
    for (int column = 0; column < n; ++column) {
      result.Place(row, column, values[static_cast<size_t>(column)]);
    }
  }
  return result;
}

absl::StatusOr<PackedInt> PackedInt::FromColumns(
    int k, int n, IntType type,
    const std::function<void(int column, int16_t* out)>& fill) {
  XC_ASSIGN_OR_RETURN(PackedInt result, Make(k, n, type));
  std::vector<int16_t> values(static_cast<size_t>(k));
  for (int column = 0; column < n; ++column) {
    fill(column, values.data());
    for (int row = 0; row < k; ++row) {
      result.Place(row, column, values[static_cast<size_t>(row)]);
    }
  }
  return result;
}

}  // namespace xcache
