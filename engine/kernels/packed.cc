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
  // The first that it fits into: small matrices fill what large ones left.
  auto slab = std::ranges::find_if(slabs_, [num_bytes](const Slab& s) {
    return s.memory.size() - s.used >= num_bytes;
  });
  if (slab == slabs_.end()) {
    slabs_.push_back({AlignedBytes(std::max(num_bytes, kSlab)), 0});
    slab = slabs_.end() - 1;
  }
  uint8_t* result = slab->memory.data() + slab->used;
  slab->used += num_bytes;
  return result;
}

size_t WeightArena::bytes() const {
  MutexLock lock(mu_);
  size_t total = 0;
  for (const Slab& slab : slabs_) total += slab.memory.size();
  return total;
}

namespace {

// Memory for a matrix, in `arena` or, where that is null, in `own`; not
// initialised, so that no page of it is there before it is written.
uint8_t* MatrixMemory(size_t num_bytes, WeightArena* arena, AlignedBytes* own) {
  if (arena != nullptr) return arena->Allocate(num_bytes);
  *own = AlignedBytes(num_bytes);
  return own->data();
}

bool ExactInF16(float x) {
  return std::isfinite(x) && F16ToF32(F32ToF16(x)) == x;
}

void PlaceBits(int value, uint8_t* byte) {
  *byte = static_cast<uint8_t>(*byte | value);
}

// What SixBitsAt reads.
void PlaceSixBits(int value, int i, int at, uint8_t* v) {
  if (i < 3) return PlaceBits(value, v + i * 64 + at);
  for (int j = 0; j < 3; ++j) {
    PlaceBits((value >> (2 * j) & 3) << 6, v + j * 64 + at);
  }
}

// Writes column `c`'s 32 codes into a block's vectors (quant_matmul.h).
void PlaceCodes(const uint8_t* codes, int bits, int c, uint8_t* block) {
  const auto place = [&](int vector, int lane, int value) {
    PlaceBits(value, block + vector * 64 + c * 4 + lane);
  };
  for (int k = 0; k < kQuantBlock; ++k) {
    const int code = codes[k], chunk = k / 4, lane = k % 4;
    switch (bits) {
      case 8:
        place(chunk, lane, code);
        break;
      case 6:
        PlaceSixBits(code, chunk % 4, c * 4 + lane, block + chunk / 4 * 192);
        break;
      case 3:
        place(2, lane, (code >> 2) << chunk);
        [[fallthrough]];
      case 2:
        place(chunk / 4, lane, (code & 3) << (chunk % 4 * 2));
        break;
      default:
        place(chunk / 2, lane, (code & 15) << (chunk % 2 * 4));
        if (bits == 5) place(4, lane, (code >> 4) << chunk);
    }
  }
}

void PlaceHalf(float value, int index, uint8_t* scales) {
  const uint16_t half = F32ToF16(value);
  std::memcpy(scales + index * 2, &half, 2);
}

// Scales of column `c` of block `b` of those that share them, at `scales`.
void PlaceScales(const WeightBlock& block, const QuantFormat& format, int b,
                 int c, uint8_t* scales) {
  PlaceHalf(block.d, c, scales);
  if (format.has_min) PlaceHalf(block.m, kPanelCols + c, scales);
  uint8_t* to = scales + (format.has_min ? 64 : 32);
  if (format.factors == QuantFactors::kOf16) {
    for (int h = 0; h < 2; ++h) {
      to[b * 32 + 2 * c + h] =
          static_cast<uint8_t>(block.scales[h] | block.mins[h] << 4);
    }
  } else if (format.factors == QuantFactors::kOf32 && format.has_min) {
    const int at = b % 2 * 2 * kPanelCols + c;
    PlaceSixBits(block.scales[0], b / 2, at, to);
    PlaceSixBits(block.mins[0], b / 2, at + kPanelCols, to);
  } else if (format.factors == QuantFactors::kOf32) {
    to[b * kPanelCols + c] = static_cast<uint8_t>(block.scales[0]);
  }
}

bool Known(QuantFormat f) {
  if (f.offset < 0 || f.offset > 128) return false;
  if (f.offset != 0 && (f.has_min || f.iq4)) return false;
  f.offset = 0;
  return std::ranges::find(kQuantFormats, f) != std::end(kQuantFormats);
}

// Whether the format holds a block's scales as they are.
bool ScalesFit(const WeightBlock& block, const QuantFormat& format) {
  if (!ExactInF16(block.d) || !ExactInF16(block.m)) return false;
  if (!format.has_min && block.m != 0.0f) return false;
  if (format.factors == QuantFactors::kNone) return true;
  const bool halves = format.factors == QuantFactors::kOf16;
  for (int h = 0; h < (halves ? 2 : 1); ++h) {
    const int x = block.scales[h], y = block.mins[h];
    const int end = halves ? 16 : 64;  // with m
    if (format.has_min ? x < 0 || x >= end || y < 0 || y >= end
                       : x < -128 || x >= 128 || y != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace

absl::StatusOr<PackedMatrix> PackedMatrix::Over(int rows, int cols,
                                                const QuantFormat& format,
                                                const uint8_t* data) {
  const int group = format.factors != QuantFactors::kNone ? kSuperBlocks : 1;
  if (rows < 1 || cols < 1 || cols % (kQuantBlock * group) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a quantized matrix is ", rows, " x ", cols,
        ": expected at least one row and columns in a multiple of ",
        kQuantBlock * group));
  }
  if (!Known(format)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "no such format: ", format.bits, " bits, offset ", format.offset,
        format.has_min ? ", a minimum" : "", format.iq4 ? ", a table" : "",
        group == 1 ? "" : ", integer scales"));
  }
  PackedMatrix result;
  QuantMatrix& view = result.view_;
  view.rows = rows;
  view.cols = cols;
  view.format = format;
  view.data = data;
  const int num_blocks = cols / kQuantBlock;
  view.panel_bytes = (num_blocks * QuantCodeBytes(format) +
                      num_blocks / group * QuantScaleBytes(format) + 63) /
                     64 * 64;
  return result;
}

absl::StatusOr<PackedMatrix> PackedMatrix::Pack(int rows, int cols,
                                                const QuantFormat& format,
                                                const BlockFn& blocks,
                                                WeightArena* arena) {
  XC_ASSIGN_OR_RETURN(PackedMatrix result, Over(rows, cols, format, nullptr));
  uint8_t* data = MatrixMemory(result.bytes(), arena, &result.storage_);
  result.view_.data = data;
  XC_RETURN_IF_ERROR(result.PackRows(0, rows, blocks, data));
  return result;
}

absl::Status PackedMatrix::PackRows(int first, int last, const BlockFn& blocks,
                                    uint8_t* data) const {
  const QuantFormat& format = view_.format;
  const int group = format.factors != QuantFactors::kNone ? kSuperBlocks : 1;
  const int num_blocks = view_.cols / kQuantBlock;
  const int64_t code_bytes = QuantCodeBytes(format);
  const int64_t scale_bytes = QuantScaleBytes(format);
  for (int row = first; row < last; ++row) {
    uint8_t* panel = data + row / kPanelCols * view_.panel_bytes;
    uint8_t* scales = panel + num_blocks * code_bytes;
    const int c = row % kPanelCols;
    if (c == 0) std::memset(panel, 0, static_cast<size_t>(view_.panel_bytes));
    float d = 0.0f, m = 0.0f;  // of the eight blocks
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
      if (b % group == 0) d = block.d, m = block.m;
      if (!ScalesFit(block, format) || block.d != d || block.m != m) {
        return absl::InvalidArgumentError(absl::StrCat(
            "row ", row, " block ", b, ": scale ", block.d, ", minimum ",
            block.m, ", factors ", block.scales[0], ", ", block.scales[1], ", ",
            block.mins[0], ", ", block.mins[1],
            " cannot be kept exactly in this format"));
      }
      PlaceCodes(block.codes, format.bits, c, panel + b * code_bytes);
      PlaceScales(block, format, b % group, c,
                  scales + b / group * scale_bytes);
    }
  }
  return absl::OkStatus();
}

void UnpackRow(const QuantMatrix& w, int row, float* out) {
  const QuantFormat& f = w.format;
  const int num_blocks = w.cols / kQuantBlock;
  const int group = f.factors != QuantFactors::kNone ? kSuperBlocks : 1;
  const int c = row % kPanelCols;
  const uint8_t* codes = w.data + row / kPanelCols * w.panel_bytes;
  const uint8_t* scales = codes + num_blocks * QuantCodeBytes(f);
  const auto half = [&](int index) {
    uint16_t bits;
    std::memcpy(&bits, scales + index * 2, 2);
    return F16ToF32(bits);
  };
  for (int b = 0; b < num_blocks; ++b, codes += QuantCodeBytes(f)) {
    const QuantFactorPair factors = QuantFactorsAt(f, scales, b % group, c);
    float d[2], m[2] = {};
    for (int h = 0; h < 2; ++h) {
      d[h] = half(c) * static_cast<float>(factors.x[h]);
      if (!f.has_min) continue;
      m[h] = half(kPanelCols + c) * static_cast<float>(factors.y[h]);
    }
    for (int k = 0; k < kQuantBlock; ++k) {
      const int value = QuantValue(f, QuantCodeAt(f.bits, codes, c, k));
      const float product = d[k / 16] * static_cast<float>(value);
      *out++ = f.has_min ? product + m[k / 16] : product;
    }
    if (b % group == group - 1) scales += QuantScaleBytes(f);
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

absl::StatusOr<PackedFloat> PackedFloat::Over(int rows, int cols,
                                              FloatType type,
                                              const uint8_t* data) {
  if (cols < 1 || rows < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a matrix has k = ", cols, ", n = ", rows,
                     ": expected both to be positive"));
  }
  PackedFloat result;
  result.view_ = {.k = cols, .n = rows, .type = type, .data = data};
  return result;
}

absl::StatusOr<PackedFloat> PackedFloat::FromWeightRows(
    int rows, int cols, FloatType type,
    const std::function<void(int row, float* out)>& fill, WeightArena* arena) {
  XC_ASSIGN_OR_RETURN(PackedFloat result, Over(rows, cols, type, nullptr));
  uint8_t* data = MatrixMemory(result.bytes(), arena, &result.storage_);
  result.view_.data = data;
  result.PackRows(0, rows, fill, data);
  return result;
}

void PackedFloat::PackRows(int first, int last, const FillFn& fill,
                           uint8_t* data) const {
  std::memset(data + OffsetOf(first), 0, OffsetOf(last) - OffsetOf(first));
  std::vector<float> row_values(static_cast<size_t>(view_.k));
  for (int row = first; row < last; ++row) {
    fill(row, row_values.data());
    for (int k = 0; k < view_.k; ++k) {
      PlaceFloat(row_values[static_cast<size_t>(k)], view_.type,
                 FloatIndex(view_, k, row), data);
    }
  }
}

void UnpackRow(const FloatMatrix& b, int row, float* out) {
  for (int k = 0; k < b.k; ++k) {
    const int64_t index = FloatIndex(b, k, row);
    if (b.type == FloatType::kF32) {
      std::memcpy(out + k, b.data + index * 4, 4);
      continue;
    }
    uint16_t half;
    std::memcpy(&half, b.data + index * 2, 2);
    out[k] = b.type == FloatType::kF16 ? F16ToF32(half) : Bf16ToF32(half);
  }
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
  const size_t num_bytes = columns * static_cast<size_t>(result.row_bytes());
  uint8_t* data = MatrixMemory(num_bytes, nullptr, &result.storage_);
  std::memset(data, 0, num_bytes);
  view.data = data;
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
