// What the kernel tests share: reproducible numbers, awkward inputs, comparison
// of bits, and the instruction sets that a test runs on.
#ifndef XCACHE_TESTS_UNIT_ENGINE_KERNELS_KERNEL_TEST_UTIL_H_
#define XCACHE_TESTS_UNIT_ENGINE_KERNELS_KERNEL_TEST_UTIL_H_

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/kernels/isa.h"
#include "engine/kernels/kernels.h"

namespace xcache {

inline constexpr float kUlp = 0x1p-24f;  // half a unit in the last place of 1

// A test of every instruction set; those the machine lacks are skipped.
class KernelTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!IsaSupported(GetParam())) {
      GTEST_SKIP() << "this machine lacks " << IsaName(GetParam());
    }
  }
  const Kernels& kernels() const { return GetKernels(GetParam()); }
  static const Kernels& ref() { return GetKernels(Isa::kRef); }
};

#define XCACHE_FOR_EVERY_ISA(Suite)                                     \
  INSTANTIATE_TEST_SUITE_P(                                             \
      Isa, Suite, testing::Values(Isa::kRef, Isa::kAvx2, Isa::kAvx512), \
      [](const testing::TestParamInfo<Isa>& isa_info) {                 \
        return std::string(IsaName(isa_info.param));                    \
      })

enum class Values {
  kNormal,    // standard normal
  kZero,      // all +0, some -0
  kDenormal,  // denormals and the smallest normals
  kHuge,      // around 1e15: squares and products stay finite
  kOutlier,   // normal, one channel a thousand times as large
};
inline constexpr Values kAllValues[] = {Values::kNormal, Values::kZero,
                                        Values::kDenormal, Values::kHuge,
                                        Values::kOutlier};

inline std::vector<float> MakeValues(Values kind, size_t n, uint32_t seed) {
  std::mt19937 bits(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i) {
    float x = normal(bits);
    switch (kind) {
      case Values::kNormal:
        break;
      case Values::kZero:
        x = std::signbit(x) ? -0.0f : 0.0f;
        break;
      case Values::kDenormal:
        x *= 0x1p-127f;
        break;
      case Values::kHuge:
        x *= 1e15f;
        break;
      case Values::kOutlier:
        if (i % 64 == 7) x *= 1000.0f;
        break;
    }
    values[i] = x;
  }
  return values;
}

// Equal bits; any NaN equals any NaN of the same sign and payload only.
inline testing::AssertionResult SameBits(const std::vector<float>& expected,
                                         const std::vector<float>& actual) {
  if (expected.size() != actual.size()) {
    return testing::AssertionFailure()
           << "sizes " << expected.size() << " and " << actual.size();
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::bit_cast<uint32_t>(expected[i]) !=
        std::bit_cast<uint32_t>(actual[i])) {
      return testing::AssertionFailure()
             << "element " << i << ": expected " << expected[i] << ", found "
             << actual[i] << " (bits " << std::hex
             << std::bit_cast<uint32_t>(expected[i]) << ", "
             << std::bit_cast<uint32_t>(actual[i]) << ")";
    }
  }
  return testing::AssertionSuccess();
}

// Floats that start `offset` elements after an alignment of 64 bytes, with
// guards around them that must not change.
class Guarded {
 public:
  Guarded(size_t n, size_t offset, float fill = 0.0f)
      : values_(n + 64, kGuard), n_(n) {
    const auto address = reinterpret_cast<uintptr_t>(values_.data() + 16);
    begin_ = 16 + (64 - address % 64) % 64 / 4 + offset;
    for (size_t i = 0; i < n; ++i) values_[begin_ + i] = fill;
  }
  float* data() { return values_.data() + begin_; }
  std::vector<float> Get() const {
    return {values_.begin() + static_cast<ptrdiff_t>(begin_),
            values_.begin() + static_cast<ptrdiff_t>(begin_ + n_)};
  }
  bool intact() const {
    for (size_t i = 0; i < values_.size(); ++i) {
      if ((i < begin_ || i >= begin_ + n_) && values_[i] != kGuard) {
        return false;
      }
    }
    return true;
  }

 private:
  static constexpr float kGuard = 12345.5f;
  std::vector<float> values_;
  size_t n_;
  size_t begin_ = 0;
};

}  // namespace xcache

#endif  // XCACHE_TESTS_UNIT_ENGINE_KERNELS_KERNEL_TEST_UTIL_H_
