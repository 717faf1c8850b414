// The device's kernels against the CPU's reference kernels and codecs, one
// suite for every device: the host's emulation in several orders of threads,
// and a GPU where there is one. Decoding and everything element by element must
// give the CPU's bits; sums in another order must come close.
#include "engine/device/ops.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "engine/device/kernels/attention.h"
#include "engine/device/kernels/rows.h"
#include "engine/kernels/codec_kernels.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/scalar_math.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/device/ops_fixture.h"

namespace xcache::cuda {
namespace {

INSTANTIATE_TEST_SUITE_P(Devices, DeviceOpsTest,
                         ::testing::ValuesIn(testing::TestDevices()),
                         [](const auto& param) { return param.param.name; });

TEST(DeviceMathTest, ScalarsAreTheCpusBitForBit) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const auto half = static_cast<uint16_t>(h);
    ASSERT_EQ(BitsOf(F16ToF32(half)), BitsOf(xcache::F16ToF32(half))) << h;
    ASSERT_EQ(BitsOf(Bf16ToF32(half)), BitsOf(xcache::Bf16ToF32(half))) << h;
  }
  for (int i = 0; i < 256; ++i) {
    const auto bits = static_cast<uint8_t>(i);
    const float expected = E4m3ToFloat(bits);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(E4m3ToF32(bits)));
    } else {
      EXPECT_EQ(BitsOf(E4m3ToF32(bits)), BitsOf(expected)) << i;
    }
  }
  std::mt19937 rng(3);
  for (int i = 0; i < 300000; ++i) {
    const float x = FloatOf(static_cast<uint32_t>(rng()));
    ASSERT_EQ(F32ToF16(x), xcache::F32ToF16(x)) << x;
    ASSERT_EQ(F32ToBf16(x), xcache::F32ToBf16(x)) << x;
    if (x < 127.0f) {
      ASSERT_EQ(BitsOf(Exp2(x)), BitsOf(xcache::Exp2(x))) << x;
    }
    if (!std::isfinite(x) || x == 0.0f) continue;  // have no exponent
    const float small = std::ldexp(x, 5 - std::ilogb(x));
    ASSERT_EQ(BitsOf(Exp(small)), BitsOf(xcache::Exp(small))) << small;
    ASSERT_EQ(BitsOf(Silu(small)), BitsOf(xcache::Silu(small))) << small;
  }
}

TEST_P(DeviceOpsTest, EmbedCopiesRowsOfTheTable) {
  const int width = 136;
  std::vector<uint16_t> table(static_cast<size_t>(7 * width));
  for (uint16_t& x : table) x = F32ToBf16(Random(1)[0]);
  std::vector<RowInfo> rows(3);
  rows[0].token = 6;
  rows[2].token = 2;
  Array<uint16_t> device_table(*ops_, table);
  Array<RowInfo> device_rows(*ops_, rows);
  Array<float> out(*ops_, std::vector<float>(rows.size() * width));
  EmbedArgs args;
  args.rows = device_rows.get();
  args.table = device_table.get();
  args.out = out.get();
  args.num_rows = 3;
  args.width = width;
  ops_->Embed(args);
  const std::vector<float> found = out.ToHost();
  for (size_t r = 0; r < rows.size(); ++r) {
    for (size_t i = 0; i < size_t{width}; ++i) {
      ASSERT_EQ(
          found[r * width + i],
          Bf16ToF32(table[static_cast<size_t>(rows[r].token) * width + i]));
    }
  }
}

TEST_P(DeviceOpsTest, RmsNormIsCloseToTheReferenceAndKeepsLiveRows) {
  for (int width : {16, 64, 127, 128, 129, 576, 4096}) {
    const auto n = static_cast<size_t>(width);
    const int num_rows = 3, layer = 1;
    const std::vector<float> x = Random(3 * n, 3.0f);
    const std::vector<float> gain = Random(n);
    Array<float> unit(*ops_, std::vector<float>(2 * kBlockTokens * n, -1.0f));
    Array<float> rms(*ops_, std::vector<float>(2 * kBlockTokens, -1.0f));
    std::vector<RowInfo> rows(3);
    for (int r = 0; r < num_rows; ++r)
      rows[static_cast<size_t>(r)].slot = 9 + r;
    rows[1].unit_x = unit.get();
    rows[1].rms = rms.get();
    Array<float> device_x(*ops_, x), device_gain(*ops_, gain);
    Array<RowInfo> device_rows(*ops_, rows);
    Array<uint16_t> out(*ops_, std::vector<uint16_t>(3 * n));
    RmsNormArgs args;
    args.x = device_x.get();
    args.rows = device_rows.get();
    args.gain = device_gain.get();
    args.out = out.get();
    args.eps = 1e-5f;
    args.num_rows = num_rows;
    args.width = width;
    args.layer = layer;
    ops_->RmsNorm(args);
    const std::vector<uint16_t> found = out.ToHost();
    std::vector<float> expected(n), expected_unit(n);
    for (size_t r = 0; r < 3; ++r) {
      const float expected_rms =
          kernels_.rms_norm(x.data() + r * n, gain.data(), width, 1e-5f,
                            expected.data(), expected_unit.data());
      for (size_t i = 0; i < n; ++i) {
        // BF16 has 8 bits; the sums differ in order only.
        ASSERT_NEAR(Bf16ToF32(found[r * n + i]), expected[i],
                    std::fabs(expected[i]) * 0.005f + 1e-6f);
      }
      if (r != 1) continue;
      const std::vector<float> kept = unit.ToHost();
      const size_t at = (kBlockTokens * layer + 10) * n;
      for (size_t i = 0; i < n; ++i) {
        ASSERT_NEAR(kept[at + i], expected_unit[i], 1e-5f);
      }
      EXPECT_NEAR(rms.ToHost()[kBlockTokens * layer + 10], expected_rms,
                  1e-5f * expected_rms);
      EXPECT_EQ(std::count(kept.begin(), kept.end(), -1.0f),
                static_cast<ptrdiff_t>((2 * kBlockTokens - 1) * n));
    }
  }
}

TEST_P(DeviceOpsTest, RmsNormTakesTheRowsItIsTold) {
  const std::vector<float> x = {1, 2, 3, 4, 5, 6};
  Array<float> device_x(*ops_, x), gain(*ops_, {1.0f, 1.0f});
  Array<int32_t> index(*ops_, {2, 0});
  Array<uint16_t> out(*ops_, std::vector<uint16_t>(4));
  RmsNormArgs args;
  args.x = device_x.get();
  args.row_index = index.get();
  args.gain = gain.get();
  args.out = out.get();
  args.num_rows = 2;
  args.width = 2;
  ops_->RmsNorm(args);
  const std::vector<uint16_t> found = out.ToHost();
  const float rms = std::sqrt((25.0f + 36.0f) / 2);
  EXPECT_NEAR(Bf16ToF32(found[0]), 5 / rms, 0.005f);
  EXPECT_NEAR(Bf16ToF32(found[3]), 2 / std::sqrt(2.5f), 0.01f);
}

TEST_P(DeviceOpsTest, StoreKvGivesTheCpusTilesAndQueries) {
  struct Case {
    int n_heads, n_kv_heads, head_dim, rope_dim;
    bool bias;
    RopeOrder order;
  };
  for (const Case& c : {Case{4, 2, 32, 32, false, RopeOrder::kInterleaved},
                        Case{3, 3, 64, 64, true, RopeOrder::kHalves},
                        Case{8, 1, 128, 64, true, RopeOrder::kInterleaved},
                        Case{2, 2, 16, 8, false, RopeOrder::kHalves}}) {
    const auto kv = static_cast<size_t>(c.n_kv_heads * c.head_dim);
    const auto q_dim = static_cast<size_t>(c.n_heads * c.head_dim);
    const auto half = static_cast<size_t>(c.rope_dim / 2);
    const KvLayout layout{2, c.n_kv_heads, c.head_dim};
    const size_t tile_elements = 2 * static_cast<size_t>(LayerElements(layout));
    const size_t num_rows = 5, stride = q_dim + 2 * kv;
    const std::vector<float> qkv = Random(num_rows * stride);
    const std::vector<float> bq = Random(q_dim), bk = Random(kv),
                             bv = Random(kv);
    const std::vector<float> cos = Random(256 * half), sin = Random(256 * half);
    Array<uint16_t> tiles(*ops_, std::vector<uint16_t>(tile_elements, 7));
    Array<float> k_pre(*ops_, std::vector<float>(2 * kBlockTokens * kv));
    Array<float> v_pre(*ops_, std::vector<float>(2 * kBlockTokens * kv));
    std::vector<RowInfo> rows(num_rows);
    for (size_t r = 0; r < num_rows; ++r) {
      rows[r].slot = static_cast<int>(20 + r);
      rows[r].position = static_cast<int>(128 + 20 + r);
      rows[r].tiles = tiles.get();
      rows[r].k_pre = k_pre.get();
      rows[r].v_pre = v_pre.get();
    }
    Array<RowInfo> device_rows(*ops_, rows);
    Array<float> device_qkv(*ops_, qkv), q_out(*ops_, Random(num_rows * q_dim)),
        device_bq(*ops_, bq), device_bk(*ops_, bk), device_bv(*ops_, bv),
        device_cos(*ops_, cos), device_sin(*ops_, sin);
    StoreKvArgs args;
    args.rows = device_rows.get();
    args.q = device_qkv.get();
    args.q_stride = static_cast<int64_t>(stride);
    args.q_out = q_out.get();
    args.k = device_qkv.get() + q_dim;
    args.v = args.k + kv;
    args.kv_stride = static_cast<int64_t>(stride);
    if (c.bias) {
      args.bq = device_bq.get();
      args.bk = device_bk.get();
      args.bv = device_bv.get();
    }
    args.cos = device_cos.get();
    args.sin = device_sin.get();
    args.rope_order = c.order;
    args.layout = layout;
    args.rope_dim = c.rope_dim;
    args.n_heads = c.n_heads;
    args.layer = 1;
    args.num_rows = static_cast<int>(num_rows);
    ops_->StoreKv(args);

    // The CPU's way: add, rope, StoreKv.
    std::vector<uint16_t> expected(tile_elements, 7);
    std::vector<float> expected_q;
    for (size_t r = 0; r < num_rows; ++r) {
      std::vector<float> q(
          qkv.begin() + static_cast<ptrdiff_t>(r * stride),
          qkv.begin() + static_cast<ptrdiff_t>(r * stride + q_dim));
      const float* k_from = qkv.data() + r * stride + q_dim;
      std::vector<float> k(k_from, k_from + kv),
          v(k_from + kv, k_from + 2 * kv);
      if (c.bias) {
        kernels_.add(q.data(), bq.data(), static_cast<int>(q_dim), q.data());
        kernels_.add(k.data(), bk.data(), static_cast<int>(kv), k.data());
        kernels_.add(v.data(), bv.data(), static_cast<int>(kv), v.data());
      }
      const size_t angle = static_cast<size_t>(rows[r].position) * half;
      kernels_.rope(q.data(), c.n_heads, c.head_dim, c.rope_dim,
                    cos.data() + angle, sin.data() + angle, c.order);
      kernels_.rope(k.data(), c.n_kv_heads, c.head_dim, c.rope_dim,
                    cos.data() + angle, sin.data() + angle, c.order);
      expected_q.insert(expected_q.end(), q.begin(), q.end());
      for (int head = 0; head < c.n_kv_heads; ++head) {
        uint16_t* base = expected.data() + LayerElements(layout);
        StoreKv(kernels_, k.data() + head * c.head_dim,
                v.data() + head * c.head_dim, 0, 1, c.head_dim, rows[r].slot,
                base + KTile(layout, head), base + VTile(layout, head));
      }
    }
    EXPECT_EQ(tiles.ToHost(), expected);
    EXPECT_EQ(q_out.ToHost(), expected_q);
    const std::vector<float> kept_k = k_pre.ToHost(), kept_v = v_pre.ToHost();
    for (size_t r = 0; r < num_rows; ++r) {
      for (size_t i = 0; i < kv; ++i) {
        const size_t at = (kBlockTokens + 20 + r) * kv + i;
        ASSERT_EQ(kept_k[at], qkv[r * stride + q_dim + i]);
        ASSERT_EQ(kept_v[at], qkv[r * stride + q_dim + kv + i]);
      }
    }

    // The rows of a rematerialized block go the same way.
    Array<uint16_t> again(*ops_, std::vector<uint16_t>(tile_elements, 7));
    std::vector<float> block_k(kBlockTokens * kv), block_v(kBlockTokens * kv);
    for (size_t r = 0; r < num_rows; ++r) {
      const float* from = qkv.data() + r * stride + q_dim;
      std::copy_n(from, kv, block_k.data() + (20 + r) * kv);
      std::copy_n(from + kv, kv, block_v.data() + (20 + r) * kv);
    }
    Array<float> device_k(*ops_, block_k), device_v(*ops_, block_v);
    BlockTarget target;
    target.tiles = again.get();
    target.layer_stride = LayerElements(layout);
    target.first_position = 128;
    target.first_row = 4;
    Array<BlockTarget> device_target(*ops_, {target});
    args.rows = nullptr;
    args.q = nullptr;
    args.blocks = device_target.get();
    args.k = device_k.get();
    args.v = device_v.get();
    args.kv_stride = static_cast<int64_t>(kv);
    args.num_rows = kBlockTokens;
    ops_->StoreKv(args);
    const std::vector<uint16_t> found = again.ToHost();
    for (int head = 0; head < c.n_kv_heads; ++head) {
      for (int slot = 0; slot < kBlockTokens; ++slot) {
        for (int d = 0; d < c.head_dim; ++d) {
          const auto k_at =
              static_cast<size_t>(LayerElements(layout) + KTile(layout, head) +
                                  d * kBlockTokens + slot);
          const auto v_at =
              static_cast<size_t>(LayerElements(layout) + VTile(layout, head) +
                                  slot * c.head_dim + d);
          if (slot < 4) {
            ASSERT_EQ(found[k_at], 7);
            ASSERT_EQ(found[v_at], 7);
          } else if (slot >= 20 && slot < 25) {
            ASSERT_EQ(found[k_at], expected[k_at]);
            ASSERT_EQ(found[v_at], expected[v_at]);
          }
        }
      }
    }
  }
}

TEST_P(DeviceOpsTest, SiluMulGivesTheCpusBits) {
  const int width = 200;
  const size_t n = width;
  const std::vector<float> gate_up = Random(2 * 2 * n, 4.0f);
  Array<float> in(*ops_, gate_up);
  Array<uint16_t> out(*ops_, std::vector<uint16_t>(2 * n));
  SiluMulArgs args;
  args.gate_up = in.get();
  args.out = out.get();
  args.num_rows = 2;
  args.width = width;
  ops_->SiluMul(args);
  const std::vector<uint16_t> found = out.ToHost();
  std::vector<float> expected(n);
  for (size_t r = 0; r < 2; ++r) {
    kernels_.silu_mul(gate_up.data() + 2 * n * r,
                      gate_up.data() + 2 * n * r + n, width, expected.data());
    for (size_t i = 0; i < n; ++i) {
      ASSERT_EQ(found[r * n + i], F32ToBf16(expected[i]));
    }
  }
}

// Attention over random tiles, for prefill and decode, against the CPU's.
TEST_P(DeviceOpsTest, AttentionIsCloseToTheReferenceAndIndependentOfTheBatch) {
  struct Case {
    int n_kv_heads, group, head_dim, first_position, num_tokens;
  };
  for (const Case& c :
       {Case{2, 2, 32, 0, 1}, Case{1, 1, 16, 0, 64}, Case{2, 3, 64, 70, 5},
        Case{1, 8, 128, 64 * 9, 2}, Case{3, 1, 80, 64 * 8 - 64, 64},
        Case{1, 4, 256, 1030, 1}, Case{2, 7, 64, 64 * 17 + 63, 1}}) {
    const KvLayout layout{1, c.n_kv_heads, c.head_dim};
    const auto elements = static_cast<size_t>(LayerElements(layout));
    const int last = c.first_position + c.num_tokens - 1;
    const auto num_blocks = static_cast<size_t>(last / kBlockTokens + 1);
    std::vector<uint16_t> tiles(num_blocks * elements);
    for (uint16_t& x : tiles) x = F32ToF16(Random(1)[0]);
    // What lies behind the last key is never looked at.
    for (int head = 0; head < c.n_kv_heads; ++head) {
      uint16_t* base = tiles.data() + (num_blocks - 1) * elements;
      for (int slot = last % kBlockTokens + 1; slot < kBlockTokens; ++slot) {
        for (int d = 0; d < c.head_dim; ++d) {
          base[KTile(layout, head) + d * kBlockTokens + slot] = 0x7e00;
          base[VTile(layout, head) + slot * c.head_dim + d] = 0x7e00;
        }
      }
    }
    const auto q_dim = static_cast<size_t>(c.n_kv_heads * c.group * c.head_dim);
    const std::vector<float> q =
        Random(static_cast<size_t>(c.num_tokens) * q_dim);
    const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));

    Array<uint16_t> device_tiles(*ops_, tiles);
    std::vector<BlockTable> table;
    for (size_t b = 0; b < num_blocks; ++b) {
      table.push_back({device_tiles.get() + b * elements, 0});
    }
    Array<BlockTable> device_table(*ops_, table);
    const auto attend = [&](int first_token, int num_tokens) {
      std::vector<AttentionTask> tasks;
      int64_t partial_rows = 0;
      AttentionTask task;
      task.num_tokens = num_tokens;
      task.first_position = c.first_position + first_token;
      task.num_chunks = last / (kChunkTiles * kBlockTokens) + 1;
      for (task.first_query = 0; task.first_query < num_tokens * c.group;
           task.first_query += kAttentionRows) {
        for (task.chunk = 0; task.chunk < task.num_chunks; ++task.chunk) {
          task.partial_row = partial_rows;
          partial_rows += QueryRows(task, c.group);
          tasks.push_back(task);
        }
      }
      const size_t n = static_cast<size_t>(num_tokens) * q_dim;
      const auto from = q.begin() + static_cast<ptrdiff_t>(first_token) *
                                        static_cast<ptrdiff_t>(q_dim);
      Array<AttentionTask> device_tasks(*ops_, tasks);
      Array<float> device_q(
          *ops_, std::vector<float>(from, from + static_cast<ptrdiff_t>(n)));
      Array<float> partials(
          *ops_, std::vector<float>(
                     static_cast<size_t>(partial_rows * c.n_kv_heads) *
                     static_cast<size_t>(PartialRowFloats(c.head_dim))));
      Array<uint16_t> out(*ops_, std::vector<uint16_t>(n));
      AttentionArgs args;
      args.tasks = device_tasks.get();
      args.blocks = device_table.get();
      args.q = device_q.get();
      args.partials = partials.get();
      args.out = out.get();
      args.layout = layout;
      args.group = c.group;
      args.num_tasks = static_cast<int>(tasks.size());
      args.scale = scale;
      ops_->Attend(args);
      return out.ToHost();
    };
    const std::vector<uint16_t> found = attend(0, c.num_tokens);

    std::vector<const uint16_t*> k_tiles(num_blocks), v_tiles(num_blocks);
    std::vector<float> expected(q.size());
    for (int head = 0; head < c.n_kv_heads; ++head) {
      for (size_t b = 0; b < num_blocks; ++b) {
        k_tiles[b] = tiles.data() + b * elements + KTile(layout, head);
        v_tiles[b] = tiles.data() + b * elements + VTile(layout, head);
      }
      xcache::AttentionArgs args;
      args.head_dim = c.head_dim;
      args.group = c.group;
      args.num_tokens = c.num_tokens;
      args.first_position = c.first_position;
      args.scale = scale;
      const int column = head * c.group * c.head_dim;
      args.q = q.data() + column;
      args.q_stride = static_cast<int64_t>(q_dim);
      args.k_tiles = k_tiles.data();
      args.v_tiles = v_tiles.data();
      args.out = expected.data() + column;
      args.out_stride = static_cast<int64_t>(q_dim);
      std::vector<float> partials(static_cast<size_t>(2 * PartialFloats(args)));
      Attend(kernels_, args, partials.data(), nullptr);
    }
    // BF16 results; queries and weights were rounded to FP16.
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(Bf16ToF32(found[i]), expected[i],
                  0.005f * std::fabs(expected[i]) + 5e-4f)
          << "head_dim " << c.head_dim << ", element " << i;
    }
    // One token alone has the bits that it has among the others.
    const int alone = c.num_tokens / 2;
    const std::vector<uint16_t> one = attend(alone, 1);
    EXPECT_TRUE(std::equal(one.begin(), one.end(),
                           found.begin() + static_cast<ptrdiff_t>(alone) *
                                               static_cast<ptrdiff_t>(q_dim)));
  }
}

TEST_P(DeviceOpsTest, ProductsAreIndependentOfTheNumberOfRows) {
  for (HalfType type : {HalfType::kBf16, HalfType::kF16}) {
    const int n = 80, k = 96, max_rows = 130;
    const auto half = [&](float x) {
      return type == HalfType::kBf16 ? F32ToBf16(x) : F32ToF16(x);
    };
    const auto value = [&](uint16_t h) {
      return type == HalfType::kBf16 ? Bf16ToF32(h) : F16ToF32(h);
    };
    std::vector<uint16_t> a(192 * k), w(n * k);
    for (uint16_t& x : a) x = half(Random(1)[0]);
    for (uint16_t& x : w) x = half(Random(1)[0]);
    Array<uint16_t> device_a(*ops_, a), device_w(*ops_, w);
    const auto multiply = [&](int rows, bool add) {
      Array<float> out(*ops_, std::vector<float>(192 * n, 1.0f));
      GemmArgs args;
      args.a = device_a.get();
      args.w = device_w.get();
      args.out = out.get();
      args.out_stride = n;
      args.num_rows = rows;
      args.n = n;
      args.k = k;
      args.type = type;
      args.add = add;
      ops_->Gemm(args);
      return out.ToHost();
    };
    const std::vector<float> all = multiply(max_rows, false);
    for (size_t r = 0; r < max_rows; ++r) {
      for (size_t c = 0; c < n; ++c) {
        double sum = 0.0;
        for (size_t i = 0; i < k; ++i) {
          sum += static_cast<double>(value(a[r * k + i])) *
                 static_cast<double>(value(w[c * k + i]));
        }
        ASSERT_NEAR(all[r * n + c], sum, 1e-4);
      }
    }
    for (int rows : {1, 7, 64, 65, 128}) {
      const std::vector<float> some = multiply(rows, false);
      EXPECT_TRUE(
          std::equal(some.begin(), some.begin() + rows * n, all.begin()))
          << rows << " rows";
    }
    const std::vector<float> sums = multiply(3, true);
    EXPECT_NEAR(sums[5], all[5] + 1.0f, 1e-4f);
  }
}

}  // namespace
}  // namespace xcache::cuda
