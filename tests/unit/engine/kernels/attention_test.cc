#include "engine/kernels/attention.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/kernels/packed.h"
#include "engine/kernels/scalar_math.h"
#include "tests/unit/engine/kernels/kernel_test_util.h"

namespace xcache {
namespace {

// A sequence's working set of one kv head, and queries for some of its rows.
struct Problem {
  int head_dim, group, first_position, num_tokens;
  std::vector<std::vector<uint16_t>> k, v;
  std::vector<const uint16_t*> k_tiles, v_tiles;
  std::vector<float> q;
  int64_t stride = 0;
  int window = 0;

  int num_keys() const { return first_position + num_tokens; }
};

Problem MakeProblem(int head_dim, int group, int first_position, int num_tokens,
                    Values kind = Values::kNormal) {
  Problem p{.head_dim = head_dim,
            .group = group,
            .first_position = first_position,
            .num_tokens = num_tokens,
            .k = {},
            .v = {},
            .k_tiles = {},
            .v_tiles = {},
            .q = {}};
  const auto hd = static_cast<size_t>(head_dim);
  const int tiles = (p.num_keys() - 1) / kTileKeys + 1;
  // What lies behind the last key must not matter: NaN.
  const uint16_t nan = 0x7e01;
  for (int t = 0; t < tiles; ++t) {
    p.k.emplace_back(hd * kTileKeys, nan);
    p.v.emplace_back(hd * kTileKeys, nan);
    const int keys = std::min(kTileKeys, p.num_keys() - t * kTileKeys);
    const auto size = static_cast<size_t>(keys) * hd;
    const auto seed = static_cast<uint32_t>(100 + t);
    const std::vector<float> k = MakeValues(kind, size, seed);
    const std::vector<float> v = MakeValues(Values::kNormal, size, seed + 77);
    StoreKv(GetKernels(Isa::kRef), k.data(), v.data(), head_dim, keys, head_dim,
            0, p.k.back().data(), p.v.back().data());
  }
  for (int t = 0; t < tiles; ++t) {
    p.k_tiles.push_back(p.k[static_cast<size_t>(t)].data());
    p.v_tiles.push_back(p.v[static_cast<size_t>(t)].data());
  }
  p.stride = group * head_dim + 16;
  p.q = MakeValues(kind == Values::kOutlier ? Values::kNormal : kind,
                   static_cast<size_t>(p.stride * num_tokens), 99);
  return p;
}

AttentionArgs ArgsOf(const Problem& p, int token, int num_tokens, float* out) {
  AttentionArgs args;
  args.head_dim = p.head_dim;
  args.group = p.group;
  args.num_tokens = num_tokens;
  args.first_position = p.first_position + token;
  args.window = p.window;
  args.scale = 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  args.q = p.q.data() + token * p.stride;
  args.q_stride = p.stride;
  args.k_tiles = p.k_tiles.data();
  args.v_tiles = p.v_tiles.data();
  args.out = out + token * p.stride;
  args.out_stride = p.stride;
  return args;
}

// Rows token .. token + num_tokens - 1 of the problem, into `out` of all.
void RunRows(const Kernels& kernels, const Problem& p, int token,
             int num_tokens, std::vector<float>* out) {
  const AttentionArgs args = ArgsOf(p, token, num_tokens, out->data());
  std::vector<float> partials(static_cast<size_t>(2 * PartialFloats(args)),
                              -7.0f);
  AlignedBytes scratch(static_cast<size_t>(
      4 * AttentionScratchFloats(p.head_dim, num_tokens * p.group)));
  std::memset(scratch.data(), 0xff, scratch.size());  // NaN
  Attend(kernels, args, partials.data(),
         reinterpret_cast<float*>(scratch.data()));
}

std::vector<float> RunAll(const Kernels& kernels, const Problem& p) {
  std::vector<float> out(p.q.size(), 3.5f);
  RunRows(kernels, p, 0, p.num_tokens, &out);
  return out;
}

class AttentionTest : public KernelTest {};
XCACHE_FOR_EVERY_ISA(AttentionTest);

TEST_P(AttentionTest, EqualsReferenceForEveryHeadDim) {
  for (int head_dim = 16; head_dim <= 256; head_dim += 16) {
    for (const int num_tokens : {1, 5}) {
      const Problem p = MakeProblem(head_dim, 3, 70, num_tokens);
      EXPECT_TRUE(SameBits(RunAll(ref(), p), RunAll(kernels(), p)))
          << head_dim << " " << num_tokens;
    }
  }
}

TEST_P(AttentionTest, EqualsReferenceAtEveryPosition) {
  for (int position = 0; position < 130; ++position) {
    for (const int group : {1, 3}) {
      const Problem p = MakeProblem(32, group, position, 1);
      ASSERT_TRUE(SameBits(RunAll(ref(), p), RunAll(kernels(), p))) << position;
    }
  }
  for (const int position : {511, 512, 513, 1023, 1024, 1500}) {
    const Problem p = MakeProblem(32, 2, position, 1);
    ASSERT_TRUE(SameBits(RunAll(ref(), p), RunAll(kernels(), p))) << position;
  }
}

TEST_P(AttentionTest, EqualsReferenceForEveryGroupAndRowCount) {
  for (int group = 1; group <= 9; ++group) {
    for (int tokens = 1; tokens <= 9; ++tokens) {
      const Problem p = MakeProblem(32, group, 64, tokens);
      ASSERT_TRUE(SameBits(RunAll(ref(), p), RunAll(kernels(), p)))
          << group << " " << tokens;
    }
  }
  const Problem p = MakeProblem(64, 3, 576, 64);
  EXPECT_TRUE(SameBits(RunAll(ref(), p), RunAll(kernels(), p)));
}

TEST_P(AttentionTest, AwkwardValuesEqualReference) {
  for (const Values kind :
       {Values::kZero, Values::kDenormal, Values::kOutlier}) {
    const Problem p = MakeProblem(64, 3, 90, 4, kind);
    EXPECT_TRUE(SameBits(RunAll(ref(), p), RunAll(kernels(), p)));
  }
}

TEST_P(AttentionTest, RowsDependNotOnOtherRows) {
  // 20 tokens at 600: two chunks; 60 rows, so register tiles are mixed.
  const Problem p = MakeProblem(64, 3, 600, 20);
  const std::vector<float> whole = RunAll(kernels(), p);
  for (int tokens = 1; tokens <= 17; ++tokens) {
    for (int first = 0; first + tokens <= p.num_tokens; first += 4) {
      std::vector<float> part = whole;
      for (int i = first; i < first + tokens; ++i) {
        std::fill_n(part.begin() + i * p.stride, p.group * p.head_dim, -1.0f);
      }
      RunRows(kernels(), p, first, tokens, &part);
      ASSERT_TRUE(SameBits(whole, part)) << tokens << " from " << first;
    }
  }
}

TEST_P(AttentionTest, ChunksMayBeComputedInAnyOrder) {
  const Problem p = MakeProblem(64, 3, 2000, 2);
  const std::vector<float> whole = RunAll(kernels(), p);
  std::vector<float> out(p.q.size(), 3.5f);
  const AttentionArgs args = ArgsOf(p, 0, p.num_tokens, out.data());
  const int chunks = NumChunks(args);
  ASSERT_EQ(chunks, 4);
  const int64_t size = PartialFloats(args);
  std::vector<float> partials(static_cast<size_t>(size * chunks));
  AlignedBytes scratch(static_cast<size_t>(
      4 * AttentionScratchFloats(p.head_dim, p.num_tokens * p.group)));
  auto* scratch_floats = reinterpret_cast<float*>(scratch.data());
  for (const int chunk : {2, 0, 3, 1}) {
    kernels().attention_chunk(args, chunk, partials.data() + chunk * size,
                              scratch_floats);
  }
  for (int chunk = 1; chunk < chunks; ++chunk) {
    kernels().attention_merge(args, partials.data(),
                              partials.data() + chunk * size);
  }
  kernels().attention_finish(args, partials.data());
  EXPECT_TRUE(SameBits(whole, out));
}

// Whole tiles before the first token's window.
void Forget(Problem* p) {
  const int first = std::max(0, p->first_position + 1 - p->window) / kTileKeys;
  for (int t = 0; t < first; ++t) {
    std::fill(p->k[static_cast<size_t>(t)].begin(),
              p->k[static_cast<size_t>(t)].end(), uint16_t{0x7e01});
    std::fill(p->v[static_cast<size_t>(t)].begin(),
              p->v[static_cast<size_t>(t)].end(), uint16_t{0x7e01});
  }
}

TEST_P(AttentionTest, WindowsEqualReference) {
  for (const int window : {1, 2, 63, 64, 65, 200, 512, 513, 900, 5000}) {
    for (const int position : {0, 62, 130, 448, 511, 512, 575, 1024, 1500}) {
      for (const int num_tokens : {1, 4}) {
        if (position % kTileKeys + num_tokens > kTileKeys) continue;
        Problem p = MakeProblem(32, 2, position, num_tokens);
        p.window = window;
        Forget(&p);
        const std::vector<float> out = RunAll(kernels(), p);
        ASSERT_TRUE(SameBits(RunAll(ref(), p), out))
            << window << " at " << position;
        ASSERT_TRUE(
            std::ranges::all_of(out, [](float x) { return std::isfinite(x); }));
      }
    }
  }
}

TEST_P(AttentionTest, AWindowOverAllKeysChangesNothing) {
  Problem p = MakeProblem(64, 3, 960, 20);
  const std::vector<float> whole = RunAll(kernels(), p);
  p.window = p.num_keys();
  EXPECT_TRUE(SameBits(whole, RunAll(kernels(), p)));
  --p.window;
  EXPECT_FALSE(SameBits(whole, RunAll(kernels(), p)));
}

// A window's begin moves through a tile and over the border of a chunk.
TEST_P(AttentionTest, RowsOfAWindowDependNotOnOtherRows) {
  for (const int window : {30, 130, 500, 530}) {
    Problem p = MakeProblem(32, 3, 1024, 64);
    p.window = window;
    Forget(&p);
    const std::vector<float> whole = RunAll(kernels(), p);
    for (const int tokens : {1, 3, 17}) {
      for (int first = 0; first + tokens <= p.num_tokens; first += tokens) {
        std::vector<float> part = whole;
        for (int i = first; i < first + tokens; ++i) {
          std::fill_n(part.begin() + i * p.stride, p.group * p.head_dim, -1.0f);
        }
        RunRows(kernels(), p, first, tokens, &part);
        ASSERT_TRUE(SameBits(whole, part))
            << window << ": " << tokens << " from " << first;
      }
    }
  }
}

TEST_P(AttentionTest, LargeScoresStayFinite) {
  // One key is far ahead of all others, the rest underflow.
  Problem p = MakeProblem(32, 1, 200, 1);
  for (float& x : p.q) x *= 300.0f;
  const std::vector<float> out = RunAll(kernels(), p);
  for (const float x : out) EXPECT_TRUE(std::isfinite(x));
  EXPECT_TRUE(SameBits(RunAll(ref(), p), out));
}

TEST(AttentionRefTest, MatchesDoubleWithinTheRoundingBound) {
  for (const auto& [kind, window] :
       {std::pair{Values::kNormal, 0}, std::pair{Values::kNormal, 150},
        std::pair{Values::kZero, 0}, std::pair{Values::kOutlier, 0}}) {
    Problem p = MakeProblem(64, 2, 700, 3, kind);
    p.window = window;
    const std::vector<float> out = RunAll(GetKernels(Isa::kRef), p);
    const int hd = p.head_dim;
    for (int i = 0; i < p.num_tokens; ++i) {
      const int keys = p.first_position + i + 1;
      const int from = window == 0 ? 0 : keys - window;
      for (int g = 0; g < p.group; ++g) {
        const float* q = p.q.data() + i * p.stride + g * hd;
        std::vector<double> z(static_cast<size_t>(keys), -1e300);
        double magnitude = 0.0;
        for (int j = from; j < keys; ++j) {
          double sum = 0.0, absolute = 0.0;
          const uint16_t* k = p.k_tiles[static_cast<size_t>(j / 64)];
          for (int d = 0; d < hd; ++d) {
            const double term =
                static_cast<double>(q[d]) * F16ToF32(k[d * 64 + j % 64]) / 8.0;
            sum += term;
            absolute += std::fabs(term);
          }
          z[static_cast<size_t>(j)] = sum;
          magnitude = std::max(magnitude, absolute);
        }
        const double max = *std::max_element(z.begin(), z.end());
        double total = 0.0;
        std::vector<double> exact(static_cast<size_t>(hd), 0.0);
        double largest = 0.0;
        for (int j = from; j < keys; ++j) {
          const double w = std::exp(z[static_cast<size_t>(j)] - max);
          total += w;
          const uint16_t* v = p.v_tiles[static_cast<size_t>(j / 64)];
          for (int d = 0; d < hd; ++d) {
            const double x = F16ToF32(v[j % 64 * hd + d]);
            largest = std::max(largest, std::fabs(x));
            exact[static_cast<size_t>(d)] += w * x;
          }
        }
        // A score is off by (hd + 3) roundings of its terms' magnitude; a
        // weight by twice that (its maximum is off as well), the exponential's
        // 2.5e-7 and the range's flush; sums by a rounding for each key.
        const double tolerance =
            largest * (2.0 * magnitude * (hd + 3) * kUlp + 2 * 2.5e-7 +
                       2.0 * (keys + 16) * kUlp);
        for (int d = 0; d < hd; ++d) {
          EXPECT_NEAR(out[static_cast<size_t>(i * p.stride + g * hd + d)],
                      exact[static_cast<size_t>(d)] / total, tolerance);
        }
      }
    }
  }
}

TEST_P(AttentionTest, StoreKvWritesItsSlotsOnly) {
  const int hd = 48;
  const std::vector<float> k = MakeValues(Values::kNormal, 10 * 50, 31);
  const std::vector<float> v = MakeValues(Values::kNormal, 10 * 50, 32);
  std::vector<uint16_t> k_tile(hd * 64, 9), v_tile(hd * 64, 9);
  StoreKv(kernels(), k.data(), v.data(), 50, 10, hd, 20, k_tile.data(),
          v_tile.data());
  std::vector<uint16_t> k16(k.size()), v16(v.size());
  ref().to_f16(k.data(), static_cast<int>(k.size()), k16.data());
  ref().to_f16(v.data(), static_cast<int>(v.size()), v16.data());
  std::vector<uint16_t> k_again(hd * 64, 9), v_again(hd * 64, 9);
  StoreKvF16(k16.data(), v16.data(), 50, 10, hd, 20, k_again.data(),
             v_again.data());
  EXPECT_EQ(k_tile, k_again);
  EXPECT_EQ(v_tile, v_again);
  for (int slot = 0; slot < 64; ++slot) {
    for (int d = 0; d < hd; ++d) {
      const bool written = slot >= 20 && slot < 30;
      const auto row = static_cast<size_t>((slot - 20) * 50 + d);
      EXPECT_EQ(k_tile[static_cast<size_t>(d * 64 + slot)],
                written ? F32ToF16(k[row]) : 9);
      EXPECT_EQ(v_tile[static_cast<size_t>(slot * hd + d)],
                written ? F32ToF16(v[row]) : 9);
    }
  }
}

}  // namespace
}  // namespace xcache
