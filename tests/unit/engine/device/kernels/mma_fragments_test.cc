// The layouts of tensor core fragments against two independent descriptions of
// them, the product on the host, and what the kernels' shared memory is laid
// out for.
#include "engine/device/kernels/mma_fragments.h"

#include <array>
#include <random>
#include <set>
#include <vector>

#include "engine/device/kernels/attention.h"
#include "engine/device/kernels/fused_remat.h"
#include "engine/kernels/scalar_math.h"
#include "gtest/gtest.h"

namespace xcache::cuda {
namespace {

// PTX ISA 8.x, 9.7.15.5.8, "Matrix Fragments for mma.m16n8k16 with floating
// point type", as it is written there.
TEST(MmaFragmentsTest, PlacesAreThoseOfThePtxIsa) {
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane >> 2;
    const int member = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const bool upper = (0 <= i && i < 2) || (4 <= i && i < 6);
      EXPECT_EQ(MmaPlaceA(lane, i).row, upper ? group : group + 8);
      const int col = member * 2 + (i & 1);
      EXPECT_EQ(MmaPlaceA(lane, i).col, i < 4 ? col : col + 8);
    }
    for (int i = 0; i < 4; ++i) {
      const int row = member * 2 + (i & 1);
      EXPECT_EQ(MmaPlaceB(lane, i).row, i < 2 ? row : row + 8);
      EXPECT_EQ(MmaPlaceB(lane, i).col, group);
      EXPECT_EQ(MmaPlaceSum(lane, i).row, i < 2 ? group : group + 8);
      EXPECT_EQ(MmaPlaceSum(lane, i).col, member * 2 + (i & 1));
    }
  }
}

// CUTLASS gives the same as strides of (lane % 4, lane / 4) and of the bits of
// the element's number, in matrices with the rows of A, the columns of B and
// the rows of the sums running fastest (SM80_16x8x16_F32F16F16F32_TN).
struct Strides {
  int member, group;
  std::array<int, 3> bits;
  int At(int lane, int i) const {
    return lane % 4 * member + lane / 4 * group + (i & 1) * bits[0] +
           (i >> 1 & 1) * bits[1] + (i >> 2 & 1) * bits[2];
  }
};
constexpr Strides kStridesA = {32, 1, {16, 8, 128}};
constexpr Strides kStridesB = {16, 1, {8, 64, 0}};
constexpr Strides kStridesSum = {32, 1, {16, 8, 0}};

TEST(MmaFragmentsTest, PlacesAreThoseOfCutlass) {
  std::set<int> a, b, sums;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const MmaPlace at = MmaPlaceA(lane, i);
      EXPECT_EQ(at.row + 16 * at.col, kStridesA.At(lane, i));
      a.insert(at.row + 16 * at.col);
    }
    for (int i = 0; i < 4; ++i) {
      const MmaPlace in_b = MmaPlaceB(lane, i);
      EXPECT_EQ(in_b.col + 8 * in_b.row, kStridesB.At(lane, i));
      b.insert(in_b.col + 8 * in_b.row);
      const MmaPlace sum = MmaPlaceSum(lane, i);
      EXPECT_EQ(sum.row + 16 * sum.col, kStridesSum.At(lane, i));
      sums.insert(sum.row + 16 * sum.col);
    }
  }
  EXPECT_EQ(a.size(), 256u);
  EXPECT_EQ(b.size(), 128u);
  EXPECT_EQ(sums.size(), 128u);
}

// ldmatrix as the PTX ISA has it (9.7.15.5.15): thread 8 i + r holds the
// address of row r of matrix i; without .trans, register i of a thread has
// elements (thread / 4, thread % 4 * 2) and its right neighbour of matrix i,
// with .trans those of the transposed matrix.
TEST(MmaFragmentsTest, TransposedLoadsGiveTwoRightSides) {
  constexpr int kStride = 24;
  std::vector<uint16_t> matrix(16 * kStride);
  for (size_t i = 0; i < matrix.size(); ++i) {
    matrix[i] = static_cast<uint16_t>(i);
  }
  const auto value = [&](int row, int col) {
    return matrix[static_cast<size_t>(row * kStride + col)];
  };
  HostWarp::PerLane<MmaB> sides[2];
  HostWarp(0).LoadTransposed(matrix.data(), kStride, sides[0], sides[1]);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const MmaPlace first_row = LoadPlace(8 * i);
      const uint32_t pair = sides[i / 2](lane).pairs[i % 2];
      const int row = first_row.row + lane % 4 * 2;
      const int col = first_row.col + lane / 4;
      EXPECT_EQ(pair & 0xffffu, value(row, col));
      EXPECT_EQ(pair >> 16, value(row + 1, col));
    }
    for (int side = 0; side < 2; ++side) {
      for (int i = 0; i < 4; ++i) {
        const MmaPlace at = MmaPlaceB(lane, i);
        const uint32_t pair = sides[side](lane).pairs[i / 2];
        EXPECT_EQ(i % 2 == 0 ? pair & 0xffffu : pair >> 16,
                  value(at.row, 8 * side + at.col));
      }
    }
    // Eight rows follow each other, so that their addresses are a matrix'.
    const MmaPlace at = LoadPlace(lane), head = LoadPlace(lane / 8 * 8);
    EXPECT_EQ(at.row, head.row + lane % 8);
    EXPECT_EQ(at.col, head.col);
  }
}

TEST(MmaFragmentsTest, QuadsCombineTheirFourLanes) {
  HostWarp::PerLane<float> values;
  for (int lane = 0; lane < 32; ++lane) {
    values(lane) = static_cast<float>(lane * lane);
  }
  HostWarp(0).CombineQuads(values, [](float a, float b) { return a + b; });
  for (int lane = 0; lane < 32; ++lane) {
    float sum = 0.0f;
    for (int i = lane / 4 * 4; i < lane / 4 * 4 + 4; ++i) {
      sum += static_cast<float>(i * i);
    }
    EXPECT_EQ(values(lane), sum);
  }
}

// What attention reads together lies in different banks, for every width of
// heads: the 16 bytes of eight rows of K, and of V.
TEST(MmaFragmentsTest, AttentionsRowsLieInDifferentBanks) {
  for (int head_dim = 16; head_dim <= kMaxHeadDim; head_dim += 16) {
    for (const int stride : {kKStride, head_dim + kSharedPadding}) {
      std::set<int> banks;
      for (int row = 0; row < 8; ++row) {
        EXPECT_EQ(row * stride % 8, 0);
        banks.insert(row * stride / 2 % 32);
      }
      EXPECT_EQ(banks.size(), 8u) << head_dim;
    }
  }
}

// Loaded from shared memory as the kernel has it, multiplied by the host, read
// back by the strides above: the product, with small whole numbers exactly.
template <HalfType kType>
void ExpectLoadedTilesMultiplyToTheProduct() {
  std::mt19937 rng(3);
  constexpr int kStride = 22;
  std::vector<uint16_t> a(16 * kStride), bt(8 * kStride);
  std::vector<int> a_values(a.size()), bt_values(bt.size());
  const auto fill = [&](std::vector<uint16_t>& halves,
                        std::vector<int>& values) {
    for (size_t i = 0; i < halves.size(); ++i) {
      values[i] = static_cast<int>(rng() % 17) - 8;
      const auto value = static_cast<float>(values[i]);
      halves[i] = kType == HalfType::kF16 ? F32ToF16(value) : F32ToBf16(value);
    }
  };
  fill(a, a_values);
  fill(bt, bt_values);
  std::array<MmaA, 32> lanes_a;
  std::array<MmaB, 32> lanes_b;
  std::array<MmaSums, 32> sums;
  for (int lane = 0; lane < 32; ++lane) {
    const auto l = static_cast<size_t>(lane);
    lanes_a[l] = LoadMmaA(a.data(), kStride, lane);
    lanes_b[l] = LoadMmaB(bt.data(), kStride, lane);
    for (int i = 0; i < 4; ++i) {
      sums[l].of[i] = static_cast<float>(100 * kStridesSum.At(lane, i));
    }
    // Element i of a register pair is its half i % 2.
    for (int i = 0; i < 8; ++i) {
      const int at = kStridesA.At(lane, i);
      const uint32_t pair = lanes_a[l].pairs[i / 2];
      EXPECT_EQ(i % 2 == 0 ? pair & 0xffffu : pair >> 16,
                a[static_cast<size_t>(at % 16 * kStride + at / 16)]);
    }
    for (int i = 0; i < 4; ++i) {
      const int at = kStridesB.At(lane, i);
      const uint32_t pair = lanes_b[l].pairs[i / 2];
      EXPECT_EQ(i % 2 == 0 ? pair & 0xffffu : pair >> 16,
                bt[static_cast<size_t>(at % 8 * kStride + at / 8)]);
    }
  }
  HostMma<kType>(
      [&](int lane) { return lanes_a[static_cast<size_t>(lane)]; },
      [&](int lane) { return lanes_b[static_cast<size_t>(lane)]; },
      [&](int lane) -> MmaSums& { return sums[static_cast<size_t>(lane)]; });
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int at = kStridesSum.At(lane, i);
      int expected = 100 * at;
      for (int k = 0; k < 16; ++k) {
        expected += a_values[static_cast<size_t>(at % 16 * kStride + k)] *
                    bt_values[static_cast<size_t>(at / 16 * kStride + k)];
      }
      EXPECT_EQ(sums[static_cast<size_t>(lane)].of[i],
                static_cast<float>(expected));
    }
  }
}

TEST(MmaFragmentsTest, LoadedTilesMultiplyToTheProduct) {
  ExpectLoadedTilesMultiplyToTheProduct<HalfType::kF16>();
  ExpectLoadedTilesMultiplyToTheProduct<HalfType::kBf16>();
}

// The 32 words of a fragment's register are in 32 banks.
TEST(MmaFragmentsTest, FragmentsAreReadFromAllBanks) {
  for (int pair = 0; pair < 4; ++pair) {
    std::set<int> a, b;
    for (int lane = 0; lane < 32; ++lane) {
      const MmaPlace in_a = MmaPlaceA(lane, 2 * pair);
      a.insert((in_a.row * kOperandStride + in_a.col) / 2 % 32);
      const MmaPlace in_b = MmaPlaceB(lane, 2 * (pair % 2));
      b.insert((in_b.col * kOperandStride + in_b.row) / 2 % 32);
    }
    EXPECT_EQ(a.size(), 32u);
    EXPECT_EQ(b.size(), 32u);
  }
  std::set<int> turned;
  for (int lane = 0; lane < 32; ++lane) {
    turned.insert((lane % 8 * kTurnStride + lane / 8) % 32);
  }
  EXPECT_EQ(turned.size(), 32u);
}

// A static __shared__ variable may have 48 KiB; copies of 16 bytes are aligned.
TEST(FusedRematShapesTest, SharedMemoryFits) {
  EXPECT_LE(sizeof(FusedShared), 48u * 1024);
  EXPECT_EQ(offsetof(FusedShared::Slice, b) % 16, 0u);
  EXPECT_EQ(kOperandStride * sizeof(uint16_t) % 16, 0u);
}

TEST(FusedRematShapesTest, PanelsAndWarpsCoverEveryColumnOnce) {
  for (int head_dim = 16; head_dim <= kFusedHeadDim; head_dim += 16) {
    for (int heads = 1; heads <= 40; ++heads) {
      const KvLayout layout{1, heads, head_dim};
      std::vector<int> seen(static_cast<size_t>(2 * heads * head_dim) * 64);
      for (int p = 0; p < 2 * NumPanels(layout); ++p) {
        const Panel panel = PanelOf(layout, p);
        ASSERT_LE(panel.num_columns, kPanelColumns);
        ASSERT_EQ(panel.first_column,
                  (panel.first_head + (panel.values ? heads : 0)) * head_dim);
        for (int warp = 0; warp < kWarps; ++warp) {
          const WarpPart part = WarpPartOf(warp, panel.num_columns);
          ASSERT_LE(part.col_tiles, kWarpColTiles);
          for (int row = 0; row < kWarpRowTiles * kMmaRows; ++row) {
            for (int col = 0; col < part.col_tiles * kMmaCols; ++col) {
              ++seen[static_cast<size_t>(
                  (panel.first_column + part.col + col) * 64 + part.row + row)];
            }
          }
        }
      }
      for (int n : seen) ASSERT_EQ(n, 1) << heads << " of " << head_dim;
    }
  }
}

}  // namespace
}  // namespace xcache::cuda
