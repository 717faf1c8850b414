// Codec xquant-tc and its profiles.
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/crc32c.h"
#include "engine/kernels/isa.h"
#include "engine/xcache/little_endian.h"
#include "engine/xcache/transform/transform_data.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/xcache/codec_test_util.h"
#include "tests/unit/engine/xcache/transform_test_util.h"

namespace xcache {
namespace {

constexpr CodecShape kShape{6, 24, 8};

std::vector<TokenId> Ids(TokenId first = 100) {
  std::vector<TokenId> ids(kBlockTokens);
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = first + 7 * static_cast<TokenId>(i);
  }
  return ids;
}

class TransformCodecTest : public ::testing::Test {
 protected:
  TransformCodecTest() : model_(kShape) {}

  std::unique_ptr<const Codec> Make(const std::string& rate,
                                    Isa isa = *ChooseIsa("")) const {
    auto codec = model_.Make("xquant-tc:rate=" + rate, isa);
    EXPECT_TRUE(codec.ok()) << codec.status();
    return *std::move(codec);
  }
  static std::vector<uint8_t> Seal(const Codec& codec, const BlockRows& rows,
                                   BlockInfo info) {
    std::vector<uint8_t> payload(codec.payload_bytes(), 0xee);
    const absl::Status status =
        codec.Seal([&](int layer) { return rows(layer); }, info, payload);
    EXPECT_TRUE(status.ok()) << status;
    payload.resize(codec.used_bytes(payload));
    return payload;
  }

  const FakeModel model_;
};

// Each error is at most half a step in each of two directions, of the coarsest
// class; half precision of the matrices adds a little.
TEST_F(TransformCodecTest, RowsComeBackWithinTheStep) {
  const BlockRows rows(model_, 1, 0.7f);
  const std::vector<TokenId> ids = Ids();
  for (size_t level = 0; level < 3; ++level) {
    const auto codec = Make(std::string(kLevelNames[level]));
    for (int first_row : {0, 4}) {
      const BlockInfo info(first_row, ids);
      const std::vector<uint8_t> payload = Seal(*codec, rows, info);
      const auto back = Restore(*codec, kShape, info, payload);
      ASSERT_TRUE(back.ok()) << back.status();
      ASSERT_EQ(back->k.size(), static_cast<size_t>(kShape.num_layers));
      const float bound = 2.0f * kMadeUpSteps[level] * 0.52f * 1.5f + 0.01f;
      const auto at = static_cast<size_t>(first_row * kShape.kv_dim);
      for (int layer = 1; layer < kShape.num_layers; ++layer) {
        const auto l = static_cast<size_t>(layer);
        for (size_t i = 0; i < back->k[l].size(); ++i) {
          ASSERT_NEAR(back->k[l][i], rows(layer).k_pre[at + i], bound);
          ASSERT_NEAR(back->v[l][i], rows(layer).v_pre[at + i], bound);
        }
      }
    }
  }
}

TEST_F(TransformCodecTest, FinerLevelsAreLargerPages) {
  const BlockRows rows(model_, 1, 0.7f);
  const std::vector<TokenId> ids = Ids();
  size_t before = 0;
  for (const char* rate : {"small", "balanced", "high"}) {
    const auto codec = Make(rate);
    const size_t size = Seal(*codec, rows, {0, ids}).size();
    EXPECT_GT(size, before);
    EXPECT_LT(size, codec->payload_bytes());
    EXPECT_TRUE(codec->variable_size());
    before = size;
  }
}

TEST_F(TransformCodecTest, ARateMayBeARatio) {
  const BlockRows rows(model_, 1, 0.7f);
  const std::vector<TokenId> ids = Ids();
  const auto ratio = [&](const Codec& codec) {
    return static_cast<double>(kShape.num_layers * 4 * kShape.kv_dim *
                               kBlockTokens) /
           static_cast<double>(Seal(codec, rows, {0, ids}).size());
  };
  const double least = ratio(*Make("high")), most = ratio(*Make("small"));
  double before = 0.0;
  int made = 0;
  for (int rate = 2; rate < 64; ++rate) {
    const auto codec =
        model_.Make("xquant-tc:rate=" + std::to_string(rate), *ChooseIsa(""));
    if (!codec.ok()) {
      EXPECT_EQ(codec.status().code(), absl::StatusCode::kInvalidArgument);
      continue;
    }
    ++made;
    EXPECT_EQ((*codec)->spec().ToString(),
              "xquant-tc:rate=" + std::to_string(rate));
    const double is = ratio(**codec);
    EXPECT_GT(is, before);
    EXPECT_GE(is, least);
    EXPECT_LE(is, most);
    const auto back =
        Restore(**codec, kShape, {0, ids}, Seal(**codec, rows, {0, ids}));
    EXPECT_TRUE(back.ok()) << back.status();
    before = is;
  }
  EXPECT_GT(made, 1);
  for (const char* rate : {"1", "03", "2.5", "1001", "-3", "fine"}) {
    EXPECT_EQ(model_.Make(std::string("xquant-tc:rate=") + rate, *ChooseIsa(""))
                  .status()
                  .code(),
              absl::StatusCode::kInvalidArgument)
        << rate;
  }
}

// What a layer without latents gives follows from the tokens alone.
TEST_F(TransformCodecTest, TheFirstLayerIsThatOfTheTokens) {
  const auto codec = Make("balanced");
  const std::vector<TokenId> ids = Ids(5);
  const auto a = Restore(*codec, kShape, {0, ids},
                         Seal(*codec, BlockRows(model_, 1), {0, ids}));
  const auto b = Restore(*codec, kShape, {0, ids},
                         Seal(*codec, BlockRows(model_, 2), {0, ids}));
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->k[0], b->k[0]);
  EXPECT_EQ(a->v[0], b->v[0]);
  EXPECT_NE(a->k[1], b->k[1]);
  std::vector<float> row(static_cast<size_t>(kShape.d_model));
  FakeModel::Embed(ids[3], kShape, row.data());
  double square = 0.0;
  for (float v : row) square += static_cast<double>(v) * v / kShape.d_model;
  double k = 0.0;
  for (size_t i = 0; i < row.size(); ++i) {
    k += static_cast<double>(row[i]) / std::sqrt(square) *
         static_cast<double>(model_.Weights(0, Projection::kKey)[i]);
  }
  EXPECT_NEAR(a->k[0][3 * static_cast<size_t>(kShape.kv_dim)], k, 0.01);
}

TEST_F(TransformCodecTest, SealRematGivesWhatRematGives) {
  const BlockRows rows(model_, 3);
  const std::vector<TokenId> ids = Ids();
  const auto codec = Make("balanced");
  const BlockInfo info(4, ids);
  const std::vector<uint8_t> payload = Seal(*codec, rows, info);
  const auto expected = Restore(*codec, kShape, info, payload);
  ASSERT_TRUE(expected.ok()) << expected.status();
  // With tasks in any order, as a pool would run them.
  const ParallelForFn backwards = [](int64_t n,
                                     const std::function<void(int64_t)>& fn) {
    while (n > 0) fn(--n);
  };
  for (const ParallelForFn& parallel : {ParallelForFn(), backwards}) {
    std::vector<uint8_t> out(codec->payload_bytes(), 0x11);
    Restored live;
    const auto begin = static_cast<size_t>(4 * kShape.kv_dim);
    const auto end = static_cast<size_t>(kBlockTokens * kShape.kv_dim);
    ASSERT_TRUE(
        codec
            ->SealRemat([&](int layer) { return rows(layer); }, info, out,
                        [&](int, const RematRows& r) {
                          live.k.emplace_back(r.k_pre + begin, r.k_pre + end);
                          live.v.emplace_back(r.v_pre + begin, r.v_pre + end);
                        },
                        parallel)
            .ok());
    out.resize(codec->used_bytes(out));
    EXPECT_EQ(out, payload);
    EXPECT_EQ(live.k, expected->k);
    EXPECT_EQ(live.v, expected->v);
  }
}

TEST_F(TransformCodecTest, EveryInstructionSetGivesTheSameBits) {
  const BlockRows rows(model_, 4);
  const std::vector<TokenId> ids = Ids();
  const auto ref = Make("high", Isa::kRef);
  const std::vector<uint8_t> payload = Seal(*ref, rows, {0, ids});
  const auto expected = Restore(*ref, kShape, {0, ids}, payload);
  for (Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    if (!IsaSupported(isa)) continue;
    const auto codec = Make("high", isa);
    EXPECT_EQ(Seal(*codec, rows, {0, ids}), payload);
    const auto back = Restore(*codec, kShape, {0, ids}, payload);
    ASSERT_TRUE(back.ok());
    EXPECT_EQ(back->k, expected->k);
    EXPECT_EQ(back->v, expected->v);
  }
}

// Rows beyond anything that was expected make steps coarser, not pages that do
// not fit, and not failures.
TEST_F(TransformCodecTest, HugeRowsAreKeptMoreCoarsely) {
  const std::vector<TokenId> ids = Ids();
  const auto codec = Make("high");
  for (float factor : {1e3f, 1e6f, 1e12f, 1e25f}) {
    BlockRows rows(model_, 5);
    for (int layer = 0; layer < kShape.num_layers; ++layer) {
      for (float& v : rows.k(layer)) v *= factor;
      for (float& v : rows.v(layer)) v *= factor;
    }
    const std::vector<uint8_t> payload = Seal(*codec, rows, {0, ids});
    ASSERT_LE(payload.size(), codec->payload_bytes());
    const auto back = Restore(*codec, kShape, {0, ids}, payload);
    ASSERT_TRUE(back.ok()) << back.status();
    double error = 0.0, size = 0.0;
    for (int layer = 1; layer < kShape.num_layers; ++layer) {
      const auto l = static_cast<size_t>(layer);
      for (size_t i = 0; i < back->k[l].size(); ++i) {
        const double want = static_cast<double>(rows(layer).k_pre[i]);
        error += std::pow(static_cast<double>(back->k[l][i]) - want, 2);
        size += want * want;
      }
    }
    EXPECT_LT(error, 1e-3 * size) << factor;
  }
}

// A transform that leaves half of its channels out has no step at which it says
// what they hold: corrections do, of the rows that need them.
class CorrectionTest : public TransformCodecTest {
 protected:
  CorrectionTest() {
    TransformData data = MakeUpTransform(kShape, 2);
    for (TransformLevel& level : data.levels) {
      for (size_t g = 0; g < level.groups.size(); ++g) {
        TransformLevel::Group& group = level.groups[g];
        group.channels /= 2;
        group.expectations.resize(group.channels * kNumSteps);
      }
    }
    halved_.UseTransform(std::move(data));
  }

  BlockRows RowsOf(uint64_t seed, float size) const {
    BlockRows rows(halved_, seed);
    for (int layer = 0; layer < kShape.num_layers; ++layer) {
      for (float& v : rows.k(layer)) v *= size;
      for (float& v : rows.v(layer)) v *= size;
    }
    return rows;
  }

  // The largest mean squared error of a row of a layer, in squares of the
  // level's step. `back` starts with row `first`; the rows below `end` count.
  double WorstRow(const Restored& back, const BlockRows& rows, float step,
                  size_t first = 0, size_t end = kBlockTokens) const {
    const auto k = static_cast<size_t>(kShape.kv_dim);
    double worst = 0.0;
    for (int layer = 1; layer < kShape.num_layers; ++layer) {
      const auto l = static_cast<size_t>(layer);
      for (size_t r = first; r < end; ++r) {
        double sum = 0.0;
        for (size_t i = r * k; i < (r + 1) * k; ++i) {
          const size_t at = i - first * k;
          sum += std::pow(
              static_cast<double>(back.k[l][at] - rows(layer).k_pre[i]), 2);
          sum += std::pow(
              static_cast<double>(back.v[l][at] - rows(layer).v_pre[i]), 2);
        }
        worst = std::max(worst, sum / static_cast<double>(2 * k) /
                                    static_cast<double>(step * step));
      }
    }
    return worst;
  }

  FakeModel halved_{kShape};
};

TEST_F(CorrectionTest, ErrorsOfRowsAreBounded) {
  const std::vector<TokenId> ids = Ids();
  for (float size : {0.3f, 3.0f, 30.0f}) {
    const BlockRows rows = RowsOf(11, size);
    for (Isa isa : {Isa::kRef, *ChooseIsa("")}) {
      const auto codec = halved_.Make("xquant-tc:rate=small", isa);
      ASSERT_TRUE(codec.ok());
      const std::vector<uint8_t> payload = Seal(**codec, rows, {0, ids});
      const auto back = Restore(**codec, kShape, {0, ids}, payload);
      ASSERT_TRUE(back.ok()) << back.status();
      // 64 times the mean of 1 / 12, at the coarsest class's doubled step,
      // and what a measure of 32 signs may miss.
      EXPECT_LT(WorstRow(*back, rows, kMadeUpSteps[2]), 64.0 / 12 * 4 * 2);
    }
  }
}

TEST_F(CorrectionTest, WhatIsSealedIsWhatComesBack) {
  const std::vector<TokenId> ids = Ids();
  const BlockRows rows = RowsOf(12, 30.0f);
  std::vector<uint8_t> expected;
  for (Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
    if (!IsaSupported(isa)) continue;
    const auto codec = halved_.Make("xquant-tc:rate=balanced", isa);
    ASSERT_TRUE(codec.ok());
    std::vector<uint8_t> payload((*codec)->payload_bytes());
    Restored live;
    const auto n = static_cast<size_t>(kBlockTokens * kShape.kv_dim);
    ASSERT_TRUE((*codec)
                    ->SealRemat([&](int layer) { return rows(layer); },
                                {0, ids}, payload,
                                [&](int, const RematRows& r) {
                                  live.k.emplace_back(r.k_pre, r.k_pre + n);
                                  live.v.emplace_back(r.v_pre, r.v_pre + n);
                                },
                                nullptr)
                    .ok());
    payload.resize((*codec)->used_bytes(payload));
    if (expected.empty()) expected = payload;
    EXPECT_EQ(payload, expected);
    const auto back = Restore(**codec, kShape, {0, ids}, payload);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(live.k, back->k);
    EXPECT_EQ(live.v, back->v);
  }
}

// Rows that are alike err alike; a reader of them all must not see it.
TEST_F(CorrectionTest, ErrorsThatAllRowsShareAverageOut) {
  BlockRows rows = RowsOf(13, 3.0f);
  const auto k = static_cast<size_t>(kShape.kv_dim);
  for (int layer = 0; layer < kShape.num_layers; ++layer) {
    for (size_t r = 1; r < kBlockTokens; ++r) {
      std::copy_n(rows.k(layer).begin(), k,
                  rows.k(layer).begin() + static_cast<ptrdiff_t>(r * k));
      std::copy_n(rows.v(layer).begin(), k,
                  rows.v(layer).begin() + static_cast<ptrdiff_t>(r * k));
    }
  }
  const std::vector<TokenId> ids(kBlockTokens, 5);
  const auto codec = halved_.Make("xquant-tc:rate=small", *ChooseIsa(""));
  ASSERT_TRUE(codec.ok());
  const auto back =
      Restore(**codec, kShape, {0, ids}, Seal(**codec, rows, {0, ids}));
  ASSERT_TRUE(back.ok()) << back.status();
  for (int layer = 1; layer < kShape.num_layers; ++layer) {
    const auto l = static_cast<size_t>(layer);
    double shared = 0.0;
    for (size_t i = 0; i < k; ++i) {
      double k_sum = 0.0, v_sum = 0.0;
      for (size_t at = i; at < k * kBlockTokens; at += k) {
        k_sum += static_cast<double>(back->k[l][at] - rows(layer).k_pre[at]);
        v_sum += static_cast<double>(back->v[l][at] - rows(layer).v_pre[at]);
      }
      shared += k_sum * k_sum + v_sum * v_sum;
    }
    // Of 64 independent errors of variance 1/12 at the doubled step, times 64;
    // rows that err alike have 64 times a row's error.
    EXPECT_LT(shared / static_cast<double>(2 * k * kBlockTokens),
              64.0 / 12 * 4 * 2)
        << layer;
  }
}

// A quarter of a block that is alike: the mean of all rows is as it should be,
// but a reader of those would read what they share.
TEST_F(CorrectionTest, ErrorsThatSomeRowsShareAverageOutToo) {
  BlockRows rows = RowsOf(15, 1.5f);
  const auto k = static_cast<size_t>(kShape.kv_dim);
  constexpr size_t kAlike = kBlockTokens / 4;
  for (int layer = 0; layer < kShape.num_layers; ++layer) {
    for (size_t r = 1; r < kAlike; ++r) {
      std::copy_n(rows.k(layer).begin(), k,
                  rows.k(layer).begin() + static_cast<ptrdiff_t>(r * k));
      std::copy_n(rows.v(layer).begin(), k,
                  rows.v(layer).begin() + static_cast<ptrdiff_t>(r * k));
    }
  }
  std::vector<TokenId> ids = Ids();
  std::fill_n(ids.begin(), kAlike, 5);
  const auto codec = halved_.Make("xquant-tc:rate=small", *ChooseIsa(""));
  ASSERT_TRUE(codec.ok());
  const std::vector<uint8_t> payload = Seal(**codec, rows, {0, ids});
  const auto back = Restore(**codec, kShape, {0, ids}, payload);
  ASSERT_TRUE(back.ok()) << back.status();
  for (int layer = 1; layer < kShape.num_layers; ++layer) {
    const auto l = static_cast<size_t>(layer);
    double shared = 0.0;
    for (size_t i = 0; i < k; ++i) {
      double k_sum = 0.0, v_sum = 0.0;
      for (size_t at = i; at < k * kBlockTokens; at += k) {
        k_sum += static_cast<double>(back->k[l][at] - rows(layer).k_pre[at]);
        v_sum += static_cast<double>(back->v[l][at] - rows(layer).v_pre[at]);
      }
      shared += k_sum * k_sum + v_sum * v_sum;
    }
    // 10 times the mean of 1 / 12, at the coarsest class's doubled step, and
    // what a measure of 32 signs may miss.
    EXPECT_LT(shared / static_cast<double>(2 * k * kBlockTokens),
              10.0 / 12 * 4 * 2)
        << layer;
  }
}

// Each query reads the first token, and the tokens that repeat it.
TEST_F(CorrectionTest, SinksBeyondTheFirstFourAreCorrected) {
  const BlockRows rows = RowsOf(14, 3.0f);
  constexpr size_t kSinks = 9;
  std::vector<TokenId> ids = Ids();
  std::fill_n(ids.begin(), kSinks, 5);
  const auto codec = halved_.Make("xquant-tc:rate=small", *ChooseIsa(""));
  ASSERT_TRUE(codec.ok());
  const BlockInfo info(kSinkTokens, ids);
  const auto back = Restore(**codec, kShape, info, Seal(**codec, rows, info));
  ASSERT_TRUE(back.ok()) << back.status();
  // Half the coarsest class's doubled step, uniform; at most half of it off.
  EXPECT_LT(WorstRow(*back, rows, kMadeUpSteps[2], kSinkTokens, kSinks), 0.26);
  EXPECT_GT(WorstRow(*back, rows, kMadeUpSteps[2], kSinkTokens), 0.26);
}

TEST_F(TransformCodecTest, RowsThatAreNotFiniteAreRefused) {
  const std::vector<TokenId> ids = Ids();
  const auto codec = Make("balanced");
  BlockRows rows(model_, 6);
  rows.v(3)[5 * static_cast<size_t>(kShape.kv_dim)] =
      std::numeric_limits<float>::infinity();
  std::vector<uint8_t> payload(codec->payload_bytes());
  EXPECT_EQ(
      codec->Seal([&](int layer) { return rows(layer); }, {0, ids}, payload)
          .code(),
      absl::StatusCode::kInvalidArgument);
}

TEST_F(TransformCodecTest, DamagedPayloadsAreRefused) {
  const BlockRows rows(model_, 7);
  const std::vector<TokenId> ids = Ids();
  const auto codec = Make("small");
  const std::vector<uint8_t> payload = Seal(*codec, rows, {0, ids});
  for (size_t n = 0; n < payload.size(); ++n) {
    const std::vector<uint8_t> cut(payload.begin(),
                                   payload.begin() + static_cast<ptrdiff_t>(n));
    EXPECT_EQ(Restore(*codec, kShape, {0, ids}, cut).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  std::vector<uint8_t> coarse = payload;
  StoreLe32(&coarse[4], 1000);
  EXPECT_EQ(Restore(*codec, kShape, {0, ids}, coarse).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(TransformCodecTest, WantsTheBlocksTokens) {
  const auto codec = Make("small");
  EXPECT_TRUE(codec->wants_tokens());
  const BlockRows rows(model_, 8);
  std::vector<uint8_t> payload(codec->payload_bytes());
  EXPECT_FALSE(
      codec->Seal([&](int layer) { return rows(layer); }, 0, payload).ok());
}

TEST(TransformProfileTest, ComesBackAsItWas) {
  const auto profile =
      NewTransformProfile(MakeUpTransform(kShape, 2), Digest{});
  const std::string bytes = profile->Serialize();
  const auto parsed = Profile::Parse(bytes, Digest{}, ProfileKind::kTransform);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ((*parsed)->Serialize(), bytes);
  EXPECT_EQ((*parsed)->digest(), profile->digest());
  const TransformData& a = *(*parsed)->transform();
  const TransformData& b = *profile->transform();
  EXPECT_EQ(a.origin, "made up");
  EXPECT_EQ(a.groups, b.groups);
  EXPECT_EQ(a.levels, b.levels);
  EXPECT_EQ(a.tables, b.tables);
  EXPECT_EQ(a.class_weights, b.class_weights);
}

TEST(TransformProfileTest, DamageIsRefused) {
  const std::string bytes =
      NewTransformProfile(MakeUpTransform({3, 8, 2}, 2), Digest{})->Serialize();
  const auto mend = [](std::string& damaged) {
    const size_t covered = damaged.size() - 4;
    StoreLe64(&damaged[24], covered - 64);
    StoreLe32(&damaged[covered], Crc32c(damaged.data(), covered));
  };
  // Cut short at every length, with a checksum and a size that fit.
  for (size_t n = 68; n < bytes.size(); ++n) {
    std::string cut = bytes.substr(0, n);
    mend(cut);
    EXPECT_EQ(
        Profile::Parse(cut, Digest{}, ProfileKind::kTransform).status().code(),
        absl::StatusCode::kDataLoss)
        << n;
  }
  std::string longer = bytes + "x";
  mend(longer);
  EXPECT_FALSE(Profile::Parse(longer, Digest{}, ProfileKind::kTransform).ok());
  EXPECT_EQ(
      Profile::Parse(bytes, Digest{}, ProfileKind::kGqaSvd).status().code(),
      absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace xcache
