// The fused kernel against the two steps that it stands for: a product that
// selects channels gives the decoded values themselves, whatever the order of
// sums, and any other product is as close as its sums allow. The fixture, which
// makes every form of codes and rows, is most of it: hence over 500 lines.
#include "engine/device/kernels/fused_remat.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "engine/device/codecs/codec.h"
#include "engine/device/codecs/matrices.h"
#include "engine/xcache/block_coder.h"
#include "engine/xcache/tile_coder.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/device/ops_fixture.h"

namespace xcache::cuda {
namespace {

constexpr int kBlocks = 3;
constexpr int kLayer = 1;  // of two
constexpr uint16_t kUntouched = 0x1234;

struct Heads {
  int n_kv_heads, head_dim;
};

// Pages of a matrix with scales per token, or of one with scales per channel
// and widths of 1 to 8 bits, and V beside it.
struct Shape {
  Heads heads;
  int channels = 0;  // of x; per channel: kv_dim
  int bits = 4;
  int group = 64;
  bool fp8 = true;
  bool rotated = true;
  bool sums = false;  // in place of pages
};
std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << s.heads.n_kv_heads << " heads of " << s.heads.head_dim << ", "
             << s.channels << " channels, " << s.bits << " bits, group "
             << s.group << (s.fp8 ? ", fp8" : "")
             << (s.rotated ? ", rotated" : "") << (s.sums ? ", sums" : "");
}

class FusedRematTest : public DeviceOpsTest {
 protected:
  // What a case has on the device.
  struct Case {
    Shape shape;
    bool per_channel = false;
    int k = 0, n = 0, kv_dim = 0;
    FusedRematArgs args;
    std::vector<std::unique_ptr<Array<uint8_t>>> payloads;
    std::unique_ptr<Array<const uint8_t*>> table;
    std::unique_ptr<Array<ChannelEntry>> entries;
    std::unique_ptr<Array<uint16_t>> w;
    std::unique_ptr<Array<int32_t>> invalid;
    std::vector<std::unique_ptr<Array<float>>> floats;
  };

  void SetUp() override {
    DeviceOpsTest::SetUp();
    if (IsSkipped()) return;
    if (!ops_->info().has_fused_remat) {
      GTEST_SKIP() << "the device has no tensor cores for FP16";
    }
  }

  Case Make(const Shape& shape, bool per_channel) {
    Case c;
    c.shape = shape;
    c.per_channel = per_channel;
    c.kv_dim = shape.heads.n_kv_heads * shape.heads.head_dim;
    c.k = per_channel ? c.kv_dim : shape.channels;
    c.n = per_channel ? c.kv_dim : 2 * c.kv_dim;
    const auto k = static_cast<size_t>(c.k);
    QuantOptions quant;
    quant.bits = shape.bits;
    quant.group = shape.group;
    quant.scales = shape.fp8 ? ScaleFormat::kF8 : ScaleFormat::kF16;
    quant.search = false;
    const BlockCoder coder(
        PerTokenMatrix(c.k, quant, quant.bits, shape.rotated), quant,
        Isa::kRef);
    TokenMatrix matrix;
    matrix.offset = 5;  // payloads have no alignment
    matrix.num_channels = c.k;
    matrix.group = shape.group;
    matrix.bits = shape.bits;
    matrix.fp8 = shape.fp8;
    matrix.rotated = shape.rotated;
    std::vector<Tile> tiles;
    const TileCoder tile_coder(quant.scales, false, Isa::kRef);
    if (per_channel) {
      std::vector<int> widths(k);
      for (size_t i = 0; i < k; ++i) {
        widths[i] = 1 + static_cast<int>(i / 8 % 8);
      }
      tiles = PerChannelTiles(widths, kBlockTokens, shape.group);
      c.args.latent.offset = 5;
      c.args.latent.num_channels = c.k;
      c.args.latent.group = std::min(shape.group, kBlockTokens);
      c.args.latent.fp8 = shape.fp8;
      std::vector<ChannelEntry> entries(
          static_cast<size_t>(kBlockTokens / c.args.latent.group) * k);
      for (const TileUnit& unit : MakeTileUnits(tiles, shape.fp8).units) {
        for (int i = 0; i < unit.num_cols; ++i) {
          entries[static_cast<size_t>(unit.first_row / c.args.latent.group) *
                      k +
                  static_cast<size_t>(unit.first_col + i)] = {
              unit.tile_offset, unit.tile_cols, unit.col + i, unit.bits};
        }
      }
      c.entries = std::make_unique<Array<ChannelEntry>>(*ops_, entries);
      c.args.latent.entries = c.entries->get();
      matrix.offset += static_cast<int64_t>(tile_coder.Bytes(tiles));
      c.args.v = matrix;
    } else {
      c.args.x = matrix;
    }
    std::vector<const uint8_t*> table;
    for (int b = 0; b < kBlocks; ++b) {
      const int first_row = b == 0 ? kSinkTokens : 0;
      std::vector<uint8_t> bytes(static_cast<size_t>(matrix.offset) +
                                 coder.bytes());
      const std::vector<float> rows = Random(kBlockTokens * k, 2.0f);
      coder.Encode(rows.data(), first_row, bytes.data() + matrix.offset);
      if (per_channel) {
        const std::vector<float> latent = Random(kBlockTokens * k, 3.0f);
        tile_coder.Encode(tiles, latent.data(), c.k, first_row,
                          bytes.data() + 5);
      }
      c.payloads.push_back(std::make_unique<Array<uint8_t>>(*ops_, bytes));
      table.push_back(c.payloads.back()->get());
    }
    c.table = std::make_unique<Array<const uint8_t*>>(*ops_, table);
    c.invalid =
        std::make_unique<Array<int32_t>>(*ops_, std::vector<int32_t>(kBlocks));
    c.args.payloads = c.table->get();
    if (shape.sums) {
      c.args.sums = Keep(c, Random(kBlocks * kBlockTokens * k, 2.0f));
      c.args.sums_width = c.k;
    }
    c.args.invalid = c.invalid->get();
    c.args.num_blocks = kBlocks;
    c.args.store.layout = {2, shape.heads.n_kv_heads, shape.heads.head_dim};
    c.args.store.layer = kLayer;
    return c;
  }

  void SetMatrix(Case& c, const std::vector<float>& w) {
    std::vector<uint16_t> halves(w.size());
    std::transform(w.begin(), w.end(), halves.begin(), F32ToF16);
    c.w = std::make_unique<Array<uint16_t>>(*ops_, halves);
    c.args.w = c.w->get();
  }
  const float* Keep(Case& c, const std::vector<float>& values) {
    c.floats.push_back(std::make_unique<Array<float>>(*ops_, values));
    return c.floats.back()->get();
  }
  // Biases, angles of any kind.
  void SetStore(Case& c, RopeOrder order, int rope_dim) {
    const auto kv = static_cast<size_t>(c.kv_dim);
    c.args.store.bk = Keep(c, Random(kv));
    c.args.store.bv = Keep(c, Random(kv));
    c.args.store.rope_dim = rope_dim;
    c.args.store.rope_order = order;
    std::vector<float> cos, sin;
    for (int i = 0; i < kBlocks * kBlockTokens * rope_dim / 2; ++i) {
      const float angle = 0.37f * static_cast<float>(i);
      cos.push_back(std::cos(angle));
      sin.push_back(std::sin(angle));
    }
    c.args.store.cos = Keep(c, cos);
    c.args.store.sin = Keep(c, sin);
  }

  // Runs `work` on tiles that nothing has touched; theirs, of all blocks.
  template <typename Work>
  std::vector<uint16_t> Tiles(const Case& c, const Work& work) {
    const auto layer = static_cast<size_t>(2 * kBlockTokens * c.kv_dim);
    Array<uint16_t> tiles(
        *ops_, std::vector<uint16_t>(2 * layer * kBlocks, kUntouched));
    std::vector<BlockTarget> targets(kBlocks);
    for (int b = 0; b < kBlocks; ++b) {
      BlockTarget& target = targets[static_cast<size_t>(b)];
      target.tiles = tiles.get() + 2 * layer * static_cast<size_t>(b);
      // The last has one layer's tiles only.
      target.layer_stride = b == kBlocks - 1 ? 0 : static_cast<int64_t>(layer);
      target.first_position = b * kBlockTokens;
      target.first_row = b == 0 ? kSinkTokens : 0;
    }
    Array<BlockTarget> device_targets(*ops_, targets);
    FusedRematArgs args = c.args;
    args.store.blocks = device_targets.get();
    work(args);
    return tiles.ToHost();
  }
  std::vector<uint16_t> Fused(const Case& c) {
    return Tiles(c,
                 [&](const FusedRematArgs& args) { ops_->FusedRemat(args); });
  }

  // What is multiplied, as FP16 values [kBlocks * 64, k].
  std::vector<uint16_t> Decoded(const Case& c) {
    Array<uint16_t> out(*ops_, std::vector<uint16_t>(static_cast<size_t>(
                                   kBlocks * kBlockTokens * c.k)));
    Tiles(c, [&](const FusedRematArgs& args) { Decode(c, args, out.get()); });
    return out.ToHost();
  }
  void Decode(const Case& c, const FusedRematArgs& args, uint16_t* out) {
    if (args.sums != nullptr) {
      RoundSumsArgs round;
      round.sums = args.sums;
      round.blocks = args.store.blocks;
      round.out = out;
      round.invalid = args.invalid;
      round.num_blocks = kBlocks;
      round.width = c.k;
      ops_->RoundSums(round);
      return;
    }
    DecodeArgs decode = DecodeArgsOf(args);
    decode.out_f16 = out;
    decode.out_stride = c.k;
    c.per_channel ? ops_->DecodeChannels(args.latent, decode)
                  : ops_->DecodeTokens(args.x, decode);
  }
  static DecodeArgs DecodeArgsOf(const FusedRematArgs& args) {
    DecodeArgs decode;
    decode.payloads = args.payloads;
    decode.invalid = args.invalid;
    decode.num_blocks = kBlocks;
    return decode;
  }

  // Decode, product, StoreKv: what the codecs do without the fused kernel.
  std::vector<uint16_t> TwoSteps(const Case& c) {
    return Tiles(c, [&](const FusedRematArgs& args) {
      const int rows = kBlocks * kBlockTokens;
      Array<uint16_t> latent(
          *ops_, std::vector<uint16_t>(static_cast<size_t>(rows * c.k)));
      Array<float> kv(
          *ops_, std::vector<float>(static_cast<size_t>(rows * 2 * c.kv_dim)));
      Decode(c, args, latent.get());
      GemmArgs gemm;
      gemm.a = latent.get();
      gemm.w = args.w;
      gemm.out = kv.get();
      gemm.out_stride = 2 * c.kv_dim;
      gemm.num_rows = rows;
      gemm.n = c.n;
      gemm.k = c.k;
      gemm.type = HalfType::kF16;
      ops_->Gemm(gemm);
      if (c.per_channel) {
        DecodeArgs decode = DecodeArgsOf(args);
        decode.out = kv.get() + c.kv_dim;
        decode.out_stride = 2 * c.kv_dim;
        ops_->DecodeTokens(args.v, decode);
      }
      StoreKvArgs store = args.store;
      store.k = kv.get();
      store.v = kv.get() + c.kv_dim;
      store.kv_stride = 2 * c.kv_dim;
      store.num_rows = rows;
      ops_->StoreKv(store);
      ops_->Synchronize(StreamId::kCompute);
    });
  }

  // Where token `slot` of block `b` has element `i` of K or V in the tiles.
  static size_t At(const Case& c, int b, int slot, int i, bool value) {
    const KvLayout& layout = c.args.store.layout;
    const int head = i / layout.head_dim;
    const int e = i % layout.head_dim;
    const int layer = b == kBlocks - 1 ? 0 : kLayer;
    return static_cast<size_t>(
        (2 * b + layer) * LayerElements(layout) +
        (value ? VTile(layout, head) + slot * layout.head_dim + e
               : KTile(layout, head) + e * kBlockTokens + slot));
  }

  void ExpectSelected(const Shape& shape, bool per_channel) {
    Case c = Make(shape, per_channel);
    std::vector<float> w(static_cast<size_t>(c.n * c.k));
    const auto channel_of = [&](int n) { return (7 * n + n / c.k + 3) % c.k; };
    for (int n = 0; n < c.n; ++n) {
      w[static_cast<size_t>(n * c.k + channel_of(n))] = 1.0f;
    }
    SetMatrix(c, w);
    const std::vector<uint16_t> tiles = Fused(c);
    const std::vector<uint16_t> decoded = Decoded(c);
    for (int b = 0; b < kBlocks; ++b) {
      for (int slot = b == 0 ? kSinkTokens : 0; slot < kBlockTokens; ++slot) {
        for (int n = 0; n < c.n; ++n) {
          const size_t at = At(c, b, slot, n % c.kv_dim, n >= c.kv_dim);
          const size_t from = static_cast<size_t>(
              (b * kBlockTokens + slot) * c.k + channel_of(n));
          // As values: a sum makes 0 of -0.
          ASSERT_EQ(F16ToF32(tiles[at]), F16ToF32(decoded[from]))
              << shape << ": block " << b << ", token " << slot << ", column "
              << n;
        }
      }
    }
    EXPECT_EQ(c.invalid->ToHost(), std::vector<int32_t>(kBlocks));
  }

  // Of rows of k values.
  static float LargestNorm(const std::vector<float>& rows, int k) {
    float largest = 0.0f;
    for (size_t at = 0; at < rows.size(); at += static_cast<size_t>(k)) {
      float square = 0.0f;
      for (size_t i = 0; i < static_cast<size_t>(k); ++i) {
        square += rows[at + i] * rows[at + i];
      }
      largest = std::max(largest, std::sqrt(square));
    }
    return largest;
  }

  void ExpectClose(const Shape& shape, bool per_channel, RopeOrder order,
                   int rope_dim) {
    Case c = Make(shape, per_channel);
    const std::vector<float> w =
        Random(static_cast<size_t>(c.n * c.k), 1.0f / std::sqrt(float(c.k)));
    SetMatrix(c, w);
    SetStore(c, order, rope_dim);
    const std::vector<uint16_t> found = Fused(c), expected = TwoSteps(c);
    const std::vector<uint16_t> decoded = Decoded(c);
    // Two sums of k products, each addition wrong by at most 2^-23 (a tensor
    // core may truncate) of the sum of absolute values, which the norms of row
    // and column bound; RoPE mixes two of them. Then FP16: a unit in the last
    // place.
    std::vector<float> values(decoded.size());
    std::transform(decoded.begin(), decoded.end(), values.begin(), F16ToF32);
    const float sums = 4 * static_cast<float>(c.k) * 0x1p-23f *
                       LargestNorm(values, c.k) * LargestNorm(w, c.k);
    for (size_t i = 0; i < found.size(); ++i) {
      if (expected[i] == kUntouched || found[i] == kUntouched) {
        ASSERT_EQ(found[i], expected[i]) << shape << ": element " << i;
        continue;
      }
      const float a = F16ToF32(found[i]), b = F16ToF32(expected[i]);
      ASSERT_LE(std::fabs(a - b), sums + 0x1p-10f * std::fabs(b) + 0x1p-24f)
          << shape << ": element " << i;
    }
    if (!per_channel) return;
    // V has no product: its very bits.
    for (int b = 0; b < kBlocks; ++b) {
      for (int slot = 0; slot < kBlockTokens; ++slot) {
        for (int i = 0; i < c.kv_dim; ++i) {
          const size_t at = At(c, b, slot, i, true);
          ASSERT_EQ(found[at], expected[at]) << shape;
        }
      }
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Devices, FusedRematTest,
                         ::testing::ValuesIn(testing::TestDevices()),
                         [](const auto& param) { return param.param.name; });

// Every place that the kernel computes: of codes in payloads, in shared memory,
// in fragments and in tiles.
TEST_P(FusedRematTest, ASelectionOfChannelsIsWhatIsDecoded) {
  for (const Heads& heads : {Heads{1, 16}, {9, 16}, {3, 64}, {2, 80}}) {
    for (int channels : {16, 27, 40, 72, 75, 100, 192, 208}) {
      for (bool rotated : {false, true}) {
        ExpectSelected({heads, channels, 4, 64, true, rotated}, false);
        ASSERT_FALSE(HasFailure());
      }
    }
  }
  for (int bits : {2, 3, 4, 8}) {
    for (int group : {16, 32, 64, 128}) {
      for (bool fp8 : {false, true}) {
        ExpectSelected({{3, 32}, 200, bits, group, fp8, true}, false);
        ASSERT_FALSE(HasFailure());
      }
    }
  }
}

TEST_P(FusedRematTest, ASelectionOfChannelsOfEveryWidthIsWhatIsDecoded) {
  for (const Heads& heads :
       {Heads{1, 16}, {9, 16}, {3, 64}, {2, 80}, {2, 112}, {2, 128}}) {
    for (int group : {16, 32, 64, 128}) {
      for (bool fp8 : {false, true}) {
        ExpectSelected({heads, 0, 4, group, fp8, true}, true);
        ASSERT_FALSE(HasFailure());
      }
    }
  }
}

TEST_P(FusedRematTest, ASelectionOfSumsIsThemRounded) {
  for (const Heads& heads :
       {Heads{1, 16}, {9, 16}, {3, 64}, {2, 80}, {2, 128}}) {
    for (int channels : {16, 27, 40, 64, 100, 208}) {
      Shape shape{heads, channels};
      shape.sums = true;
      ExpectSelected(shape, false);
      ASSERT_FALSE(HasFailure());
    }
  }
}

TEST_P(FusedRematTest, OfSumsIsCloseToRoundingAndMultiplying) {
  for (const Heads& heads : {Heads{9, 16}, {3, 64}, {2, 80}, {2, 128}}) {
    for (RopeOrder order : {RopeOrder::kInterleaved, RopeOrder::kHalves}) {
      Shape shape{heads, 168};
      shape.sums = true;
      ExpectClose(shape, false, order, heads.head_dim / 2);
      ASSERT_FALSE(HasFailure());
    }
  }
}

// In a row that counts; the sinks' sums stand for nothing.
TEST_P(FusedRematTest, ASumThatIsNotFiniteIsReported) {
  Shape shape{{3, 64}, 168};
  shape.sums = true;
  Case c = Make(shape, false);
  SetMatrix(c, std::vector<float>(static_cast<size_t>(c.n * c.k)));
  std::vector<float> sums(static_cast<size_t>(kBlocks * kBlockTokens * c.k));
  const float infinity = std::numeric_limits<float>::infinity();
  const auto row = [&](int block, int slot) {
    return sums.begin() + (block * kBlockTokens + slot) * c.k;
  };
  row(0, kSinkTokens - 1)[5] = infinity;
  row(1, 63)[167] = -infinity;
  row(2, 0)[64] = std::numeric_limits<float>::quiet_NaN();
  c.args.sums = Keep(c, sums);
  Fused(c);
  EXPECT_EQ(c.invalid->ToHost(), (std::vector<int32_t>{0, 1, 1}));
}

TEST_P(FusedRematTest, IsCloseToDecodingAndMultiplying) {
  for (const Heads& heads : {Heads{9, 16}, {3, 64}, {2, 80}, {2, 128}}) {
    for (RopeOrder order : {RopeOrder::kInterleaved, RopeOrder::kHalves}) {
      for (int rope_dim : {heads.head_dim, heads.head_dim / 2}) {
        for (bool per_channel : {false, true}) {
          for (int bits : {2, 4, 8}) {
            ExpectClose({heads, 168, bits, 32, bits == 4, bits != 8},
                        per_channel, order, rope_dim);
            ASSERT_FALSE(HasFailure());
          }
        }
      }
    }
  }
}

// Rule R1: a page's K and V have the same bits alone and among others.
TEST_P(FusedRematTest, APageHasTheSameBitsAloneAndAmongOthers) {
  for (bool per_channel : {false, true}) {
    Case c = Make({{3, 64}, 168, 3, 32, true, true}, per_channel);
    SetMatrix(c, Random(static_cast<size_t>(c.n * c.k)));
    SetStore(c, RopeOrder::kHalves, 64);
    const std::vector<uint16_t> all = Fused(c);
    std::vector<uint16_t> alone(all.size(), kUntouched);
    for (int b = 0; b < kBlocks; ++b) {
      const std::vector<uint16_t> one =
          Tiles(c, [&](const FusedRematArgs& whole) {
            FusedRematArgs args = whole;
            args.payloads += b;
            args.invalid += b;
            args.store.blocks += b;
            args.num_blocks = 1;
            ops_->FusedRemat(args);
          });
      for (size_t i = 0; i < all.size(); ++i) {
        if (one[i] != kUntouched) alone[i] = one[i];
      }
    }
    EXPECT_TRUE(alone == all) << per_channel;
  }
}

TEST_P(FusedRematTest, AScaleThatIsNoneIsReported) {
  for (bool per_channel : {false, true}) {
    Case c = Make({{3, 64}, 168, 4, 32, false, true}, per_channel);
    SetMatrix(c, std::vector<float>(static_cast<size_t>(c.n * c.k)));
    // The first step of block 1: infinite; with V, the last centre of the last
    // tile of block 2 too.
    std::vector<uint8_t> bytes = c.payloads[1]->ToHost();
    bytes[5] = 0x00;
    bytes[6] = 0x7c;
    ops_->CopyToDevice(StreamId::kCompute, c.payloads[1]->get(), bytes.data(),
                       bytes.size());
    ops_->Synchronize(StreamId::kCompute);
    std::vector<int32_t> expected = {0, 1, 0};
    if (per_channel) {
      std::vector<uint8_t> last = c.payloads[2]->ToHost();
      const size_t codes = size_t{kBlockTokens} * 32 * 4 / 8;
      uint8_t* centre = last.data() + last.size() - codes - 2;
      centre[0] = 0x01;
      centre[1] = 0x7e;
      ops_->CopyToDevice(StreamId::kCompute, c.payloads[2]->get(), last.data(),
                         last.size());
      ops_->Synchronize(StreamId::kCompute);
      expected[2] = 1;
    }
    Fused(c);
    EXPECT_EQ(c.invalid->ToHost(), expected);
  }
}

}  // namespace
}  // namespace xcache::cuda
