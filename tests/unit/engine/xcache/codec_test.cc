// What every codec promises, on small made-up models of awkward sizes. One
// suite over all codecs: hence over 500 lines.
#include "engine/xcache/codec.h"

#include <cmath>
#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/xcache/codec_test_util.h"

namespace xcache {
namespace {

using ::testing::HasSubstr;

constexpr CodecShape kShapes[] = {
    {.num_layers = 2, .d_model = 96, .kv_dim = 64},
    {.num_layers = 3, .d_model = 80, .kv_dim = 40},
    {.num_layers = 1, .d_model = 33, .kv_dim = 7},
    {.num_layers = 1, .d_model = 1, .kv_dim = 1},
};
constexpr Isa kIsas[] = {Isa::kRef, Isa::kAvx2, Isa::kAvx512};

// Every quantizing codec with every width and group size, and every other
// option at least once.
std::vector<std::string> Specs() {
  constexpr const char* kRest[] = {"preset=plain", "preset=refined",
                                   "clip=mse,scales=fp16",
                                   "clip=minmax,scales=fp8", "rotate=off"};
  std::vector<std::string> specs = {"kv-fp16"};
  for (const char* name :
       {"xquant", "xquant-gqa", "xquant-cl", "xquant-cl-gqa", "kivi"}) {
    size_t next = 0;
    for (const char* bits : {"2", "3", "4", "8"}) {
      for (const char* group : {"16", "32", "64", "128"}) {
        specs.push_back(absl::StrCat(name, ":bits=", bits, ",group=", group,
                                     ",", kRest[next++ % std::size(kRest)]));
      }
    }
  }
  specs.push_back("xquant:axis=channel");
  specs.push_back("xquant:axis=channel,bits=2,group=16,scales=fp16");
  specs.push_back("xquant-gqa:alloc=uniform,bits=3");
  specs.push_back("xquant-gqa:alloc=spectrum,bits=3,preset=plain");
  specs.push_back("xquant-cl:axis=channel,x=unit,base_layers=1,bits=3");
  specs.push_back("xquant-cl:x=residual,base_layers=2,base_bits=8,bits=2");
  specs.push_back("xquant-cl-gqa:axis=token,x=residual,base_layers=4,bits=2");
  specs.push_back("xquant-cl-gqa:alloc=uniform,x=unit,base_bits=2,bits=2");
  return specs;
}

std::vector<uint8_t> Sealed(const Codec& codec, const BlockRows& rows,
                            int first_row) {
  std::vector<uint8_t> payload(codec.payload_bytes(), 0xee);
  const absl::Status status =
      codec.Seal([&](int layer) { return rows(layer); }, first_row, payload);
  EXPECT_TRUE(status.ok()) << status;
  return payload;
}

TEST(CodecTest, SameBytesAndRowsOnEveryInstructionSet) {
  for (const CodecShape& shape : kShapes) {
    const FakeModel model(shape);
    const BlockRows rows(model, 3);
    for (const std::string& spec : Specs()) {
      const auto reference = model.Make(spec, Isa::kRef);
      ASSERT_TRUE(reference.ok()) << reference.status();
      for (int first_row : {0, kSinkTokens}) {
        const std::vector<uint8_t> payload =
            Sealed(**reference, rows, first_row);
        const auto restored = Restore(**reference, shape, first_row, payload);
        ASSERT_TRUE(restored.ok()) << restored.status();
        ASSERT_EQ(restored->k.size(), static_cast<size_t>(shape.num_layers));
        for (Isa isa : kIsas) {
          if (!IsaSupported(isa)) continue;
          const auto codec = model.Make(spec, isa);
          ASSERT_EQ(Sealed(**codec, rows, first_row), payload) << spec;
          const auto again = Restore(**codec, shape, first_row, payload);
          ASSERT_EQ(again->k, restored->k) << spec;
          ASSERT_EQ(again->v, restored->v) << spec;
        }
      }
    }
  }
}

double RelativeError(const std::vector<float>& a, const std::vector<float>& b,
                     int first_row) {
  const size_t skipped = b.size() - a.size();
  EXPECT_EQ(skipped, static_cast<size_t>(first_row) * b.size() / kBlockTokens);
  double error = 0.0, sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - b[i + skipped];
    error += d * d;
    sum += static_cast<double>(b[i + skipped]) * b[i + skipped];
  }
  return std::sqrt(error / sum);
}

// A normal source quantized uniformly at b bits keeps about 0.35, 0.19, 0.11
// and (by range) 0.007 of its deviation; sums over d do not change that.
TEST(CodecTest, RowsComeBackWithinWhatTheBitsAllow) {
  const struct {
    const char* bits;
    double plain, refined;
  } kCases[] = {{"2", 0.75, 0.42},
                {"3", 0.35, 0.25},
                {"4", 0.17, 0.14},
                {"8", 0.011, 0.011}};
  for (const CodecShape& shape : {kShapes[0], kShapes[1]}) {
    const FakeModel model(shape);
    BlockRows rows(model, 5);
    // The fake model's spectrum is not that of its rows: spread evenly.
    for (const char* form :
         {"xquant:", "xquant-gqa:alloc=uniform,",
          "kivi:", "xquant-cl:", "xquant-cl-gqa:alloc=uniform,axis=channel,"}) {
      for (const auto& c : kCases) {
        for (bool refined : {false, true}) {
          const auto made = model.Make(
              absl::StrCat(form, "bits=", c.bits,
                           ",preset=", refined ? "refined" : "plain"),
              Isa::kRef);
          ASSERT_TRUE(made.ok()) << made.status();
          for (int first_row : {0, kSinkTokens}) {
            const auto payload = Sealed(**made, rows, first_row);
            const auto restored = Restore(**made, shape, first_row, payload);
            ASSERT_TRUE(restored.ok());
            for (int layer = 0; layer < shape.num_layers; ++layer) {
              const auto i = static_cast<size_t>(layer);
              const double limit = refined ? c.refined : c.plain;
              EXPECT_LT(RelativeError(restored->k[i], rows.k(layer), first_row),
                        limit)
                  << (*made)->spec().ToString();
              EXPECT_LT(RelativeError(restored->v[i], rows.v(layer), first_row),
                        limit)
                  << (*made)->spec().ToString();
            }
          }
        }
      }
    }
  }
}

// The subspace that W_k and W_v read is all that xquant-cl-gqa keeps, and all
// that K and V need: with fine codes they come back though 2 k < d.
TEST(CodecTest, ClGqaKeepsAllThatKAndVSee) {
  const CodecShape shape{.num_layers = 4, .d_model = 96, .kv_dim = 16};
  FakeModel model(shape);
  model.UseTrueBases();
  BlockRows rows(model, 5, 0.3f);
  for (const char* x : {"unit", "residual", "fit"}) {
    const auto codec =
        model.Make(absl::StrCat("xquant-cl-gqa:bits=8,x=", x), Isa::kRef);
    ASSERT_TRUE(codec.ok()) << codec.status();
    const auto payload = Sealed(**codec, rows, 0);
    const auto restored = Restore(**codec, shape, 0, payload);
    ASSERT_TRUE(restored.ok()) << restored.status();
    for (int layer = 0; layer < shape.num_layers; ++layer) {
      const auto i = static_cast<size_t>(layer);
      EXPECT_LT(RelativeError(restored->k[i], rows.k(layer), 0), 0.012) << x;
      EXPECT_LT(RelativeError(restored->v[i], rows.v(layer), 0), 0.012) << x;
    }
  }
}

// What cross-layer codecs are for: where layers are alike, differences at two
// bits are worth more than rows at two bits; and the loop is closed, so the
// last of many layers is no worse than the first that holds differences.
TEST(CodecTest, DifferencesOfLikeLayersCostLessAndDoNotAddUp) {
  const CodecShape shape{.num_layers = 24, .d_model = 96, .kv_dim = 64};
  const FakeModel model(shape);
  BlockRows rows(model, 5, 0.2f);
  const auto errors = [&](const char* spec) {
    const auto codec = model.Make(spec, Isa::kRef);
    const auto payload = Sealed(**codec, rows, 0);
    const auto restored = Restore(**codec, shape, 0, payload);
    EXPECT_TRUE(restored.ok()) << restored.status();
    std::vector<double> out;
    for (int layer = 0; layer < shape.num_layers; ++layer) {
      out.push_back(RelativeError(restored->k[static_cast<size_t>(layer)],
                                  rows.k(layer), 0));
    }
    return out;
  };
  const std::vector<double> apart = errors("xquant:bits=2");
  for (const char* spec :
       {"xquant-cl:bits=2", "xquant-cl:bits=2,axis=channel",
        "xquant-cl:bits=2,x=unit", "xquant-cl:bits=2,x=residual",
        "xquant-cl-gqa:bits=2,alloc=uniform"}) {
    const std::vector<double> cross = errors(spec);
    for (size_t i = 4; i < cross.size(); ++i) {
      EXPECT_LT(cross[i], 0.4 * apart[i]) << spec << " layer " << i;
      EXPECT_LT(cross[i], 1.3 * cross[3]) << spec << " layer " << i;
    }
  }
}

// With x=residual a layer is predicted in its own units: that the stream has
// grown costs nothing.
TEST(CodecTest, ResidualFormFollowsTheRms) {
  const CodecShape shape{.num_layers = 8, .d_model = 96, .kv_dim = 64};
  const FakeModel model(shape);
  BlockRows rows(model, 5, 0.2f);
  for (int layer = 1; layer < shape.num_layers; ++layer) {
    // A stream x that shrinks to 0.7 in each layer: u = x / rms.
    for (float& r : rows.rms(layer)) {
      r = std::pow(0.7f, static_cast<float>(layer));
    }
  }
  const auto bytes = [&](const char* spec) {
    const auto codec = model.Make(spec, Isa::kRef);
    return Sealed(**codec, rows, 0);
  };
  // rms_{i-1} / rms_i = 1 / 0.7 = 183 / 128.
  const auto codec =
      model.Make("xquant-cl:x=residual,base_layers=1,bits=2", Isa::kRef);
  const auto unit =
      model.Make("xquant-cl:x=unit,base_layers=1,bits=2", Isa::kRef);
  EXPECT_EQ((*codec)->payload_bytes(), (*unit)->payload_bytes() + 7 * 64);
  const std::vector<uint8_t> payload =
      bytes("xquant-cl:x=residual,base_layers=1,bits=2");
  const auto base = model.Make("xquant:bits=4", Isa::kRef);
  const size_t at = (*base)->payload_bytes() / 8;
  for (size_t row = 0; row < 64; ++row) EXPECT_EQ(payload[at + row], 183);
}

// Sealing and restoring in one pass, on several threads, is what sealing and
// then restoring is.
TEST(CodecTest, SealRematIsSealThenRemat) {
  const FakeModel model(kShapes[1]);
  const BlockRows rows(model, 3, 0.5f);
  const ParallelForFn parallel = [](int64_t num_tasks,
                                    const std::function<void(int64_t)>& fn) {
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < num_tasks; ++i) threads.emplace_back(fn, i);
    for (std::thread& thread : threads) thread.join();
  };
  for (const std::string& spec : Specs()) {
    const auto codec = model.Make(spec, Isa::kRef);
    if ((*codec)->remat_stage() != RematStage::kPre) continue;
    for (int first_row : {0, kSinkTokens}) {
      const std::vector<uint8_t> payload = Sealed(**codec, rows, first_row);
      const auto restored = Restore(**codec, kShapes[1], first_row, payload);
      ASSERT_TRUE(restored.ok());
      const size_t begin = static_cast<size_t>(first_row) * 40;
      for (const ParallelForFn& spread : {ParallelForFn(), parallel}) {
        std::vector<uint8_t> again(payload.size(), 0xee);
        Restored out;
        ASSERT_TRUE(
            (*codec)
                ->SealRemat(
                    [&](int layer) { return rows(layer); }, first_row, again,
                    [&](int, const RematRows& r) {
                      out.k.emplace_back(r.k_pre + begin, r.k_pre + 64 * 40);
                      out.v.emplace_back(r.v_pre + begin, r.v_pre + 64 * 40);
                    },
                    spread)
                .ok());
        EXPECT_EQ(again, payload) << spec;
        EXPECT_EQ(out.k, restored->k) << spec;
        EXPECT_EQ(out.v, restored->v) << spec;
      }
    }
  }
}

TEST(CodecTest, CrossLayerTakesAllLayersAtOnce) {
  const FakeModel model(kShapes[0]);
  const BlockRows rows(model, 5);
  const auto codec = model.Make("xquant-cl", Isa::kRef);
  EXPECT_FALSE((*codec)->layers_independent());
  std::vector<uint8_t> payload((*codec)->payload_bytes());
  EXPECT_EQ((*codec)
                ->SealLayers(
                    {0, 1}, [&](int layer) { return rows(layer); }, 0, payload)
                .code(),
            absl::StatusCode::kInternal);
  EXPECT_EQ((*codec)->RematLayers({1, 2}, payload, 0, {}).code(),
            absl::StatusCode::kInternal);
}

TEST(CodecTest, SinksAreNotReadAndLeaveNoTrace) {
  const FakeModel model(kShapes[1]);
  BlockRows rows(model, 5), other(model, 5);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (int layer = 0; layer < 3; ++layer) {
    for (auto* side : {&other.x(layer), &other.k(layer), &other.v(layer)}) {
      std::fill_n(side->begin(), side->size() / kBlockTokens * kSinkTokens,
                  nan);
    }
  }
  for (const std::string& spec : Specs()) {
    const auto codec = model.Make(spec, Isa::kRef);
    EXPECT_EQ(Sealed(**codec, rows, kSinkTokens),
              Sealed(**codec, other, kSinkTokens))
        << spec;
  }
}

// A layer is in its part of the payload and the parts before it, and nowhere
// else.
TEST(CodecTest, PartsOfLayersFollowEachOther) {
  const FakeModel model(kShapes[1]);
  const BlockRows rows(model, 3);
  for (const std::string& spec : Specs()) {
    const auto codec = model.Make(spec, Isa::kRef);
    const auto payload = Sealed(**codec, rows, 0);
    const auto whole = Restore(**codec, kShapes[1], 0, payload);
    ASSERT_TRUE(whole.ok()) << spec << whole.status();
    ASSERT_EQ((*codec)->payload_at(0), 0u);
    for (int cut = 0; cut < (*codec)->num_layers(); ++cut) {
      auto begun = payload;
      std::fill(
          begun.begin() + static_cast<ptrdiff_t>((*codec)->payload_at(cut)),
          begun.end(), uint8_t{0});
      const auto restored = Restore(**codec, kShapes[1], 0, begun);
      ASSERT_TRUE(restored.ok()) << spec << restored.status();
      for (int layer = 0; layer <= cut; ++layer) {
        const auto at = static_cast<size_t>(layer);
        EXPECT_EQ(restored->k[at] == whole->k[at], layer < cut) << spec;
        EXPECT_EQ(restored->v[at] == whole->v[at], layer < cut) << spec;
      }
    }
  }
}

TEST(CodecTest, WhatIsNotFiniteIsInvalidArgumentNamingLayerAndRow) {
  const FakeModel model(kShapes[1]);
  for (const char* spec : {"xquant", "xquant:axis=channel", "xquant-gqa",
                           "xquant-cl", "xquant-cl-gqa", "kivi"}) {
    for (float bad : {std::numeric_limits<float>::infinity(),
                      -std::numeric_limits<float>::infinity(),
                      std::numeric_limits<float>::quiet_NaN()}) {
      BlockRows rows(model, 5);
      rows.x(1)[17 * 80 + 3] = bad;
      rows.v(1)[17 * 40 + 39] = bad;
      for (Isa isa : kIsas) {
        if (!IsaSupported(isa)) continue;
        const auto codec = model.Make(spec, isa);
        std::vector<uint8_t> payload((*codec)->payload_bytes());
        const absl::Status status =
            (*codec)->Seal([&](int layer) { return rows(layer); }, 0, payload);
        EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
        EXPECT_THAT(std::string(status.message()),
                    HasSubstr("not finite at layer 1, row 17"));
      }
    }
  }
}

// Outliers, zeros, denormals and constants: all is sealed, and comes back
// finite.
TEST(CodecTest, AwkwardRowsSealAndComeBackFinite) {
  const FakeModel model(kShapes[1]);
  for (int kind = 0; kind < 5; ++kind) {
    BlockRows rows(model, 5);
    for (int layer = 0; layer < 3; ++layer) {
      for (auto* side : {&rows.x(layer), &rows.k(layer), &rows.v(layer)}) {
        for (size_t i = 0; i < side->size(); ++i) {
          float& x = (*side)[i];
          if (kind == 0) x = 0.0f;
          if (kind == 1) x *= 0x1p-130f;
          if (kind == 2) x = 1.5f;
          if (kind == 3 && i % 7 == 0) x *= 1e6f;
          if (kind == 4) x *= 1e30f;
        }
      }
    }
    for (const std::string& spec : Specs()) {
      const auto codec = model.Make(spec, Isa::kRef);
      const auto payload = Sealed(**codec, rows, 0);
      const auto restored = Restore(**codec, kShapes[1], 0, payload);
      ASSERT_TRUE(restored.ok()) << spec << restored.status();
      for (const auto& side : {restored->k, restored->v}) {
        for (const auto& layer : side) {
          for (float x : layer) {
            ASSERT_TRUE(std::isfinite(x)) << spec << " kind " << kind;
          }
        }
      }
    }
  }
}

// A payload that passed no checksum must still not crash, nor give anything
// that is not finite from scales that are.
TEST(CodecTest, RandomPayloadsAreDecodedOrRefused) {
  const FakeModel model(kShapes[1]);
  std::mt19937 random(1);
  for (const std::string& spec : Specs()) {
    if (spec == "kv-fp16") continue;
    const auto codec = model.Make(spec, Isa::kRef);
    for (int round = 0; round < 5; ++round) {
      std::vector<uint8_t> payload((*codec)->payload_bytes());
      for (uint8_t& byte : payload) byte = static_cast<uint8_t>(random());
      const auto restored = Restore(**codec, kShapes[1], 0, payload);
      if (!restored.ok()) {
        EXPECT_EQ(restored.status().code(), absl::StatusCode::kInvalidArgument);
      }
    }
  }
}

TEST(CodecTest, AScaleThatIsNotFiniteIsInvalidArgument) {
  const FakeModel model(kShapes[0]);
  const BlockRows rows(model, 5);
  const auto codec =
      model.Make("xquant-gqa:alloc=uniform,scales=fp16", Isa::kRef);
  for (const auto& [at, high] : std::vector<std::pair<size_t, uint8_t>>{
           {1, 0x7c}, {1, 0xbc}, {129, 0xfc}, {129, 0x7e}}) {
    std::vector<uint8_t> payload = Sealed(**codec, rows, 0);
    payload[at] = high;  // infinity, a negative step, centres not finite
    EXPECT_EQ(Restore(**codec, kShapes[0], 0, payload).status().code(),
              absl::StatusCode::kInvalidArgument)
        << at;
  }
}

TEST(CodecTest, WrongPayloadSizeIsInvalidArgument) {
  const FakeModel model(kShapes[0]);
  const BlockRows rows(model, 5);
  for (const char* spec : {"kv-fp16", "xquant", "xquant-gqa", "xquant-cl",
                           "xquant-cl-gqa", "kivi"}) {
    const auto codec = model.Make(spec, Isa::kRef);
    const std::vector<uint8_t> payload = Sealed(**codec, rows, 0);
    for (size_t n : {size_t{0}, payload.size() - 1, payload.size() + 1}) {
      std::vector<uint8_t> other(n);
      EXPECT_EQ(Restore(**codec, kShapes[0], 0, other).status().code(),
                absl::StatusCode::kInvalidArgument);
      EXPECT_EQ((*codec)
                    ->Seal([&](int layer) { return rows(layer); }, 0, other)
                    .code(),
                absl::StatusCode::kInvalidArgument);
    }
  }
}

TEST(CodecTest, CanonicalSpecIsSpelledOutAndMeansTheSame) {
  const FakeModel model(kShapes[0]);
  const struct {
    const char* given;
    const char* canonical;
  } kCases[] = {
      {"kv-fp16", "kv-fp16"},
      {"xquant",
       "xquant:axis=token,bits=4,clip=mse,group=64,rotate=on,scales=fp8"},
      {"xquant:axis=channel",
       "xquant:axis=channel,bits=4,clip=mse,group=64,rotate=off,scales=fp8"},
      {"xquant-gqa:preset=plain,bits=3",
       "xquant-gqa:alloc=uniform,bits=3,clip=minmax,group=64,rotate=off,"
       "scales=fp16"},
      {"xquant-cl",
       "xquant-cl:axis=token,base_bits=4,base_layers=3,bits=4,clip=mse,"
       "group=64,rotate=on,scales=fp8,x=fit"},
      {"xquant-cl:preset=plain,bits=2",
       "xquant-cl:axis=token,base_bits=4,base_layers=3,bits=2,clip=minmax,"
       "group=64,rotate=off,scales=fp16,x=unit"},
      {"xquant-cl-gqa:bits=2",
       "xquant-cl-gqa:alloc=spectrum,axis=channel,base_bits=4,base_layers=1,"
       "bits=2,clip=mse,group=64,rotate=off,scales=fp8,x=fit"},
      {"xquant-cl-gqa:bits=8,axis=token",
       "xquant-cl-gqa:alloc=uniform,axis=token,base_bits=8,base_layers=1,"
       "bits=8,clip=mse,group=64,rotate=on,scales=fp16,x=fit"},
      {"kivi:bits=2", "kivi:bits=2,clip=mse,group=64,rotate=on,scales=fp8"},
      {"xquant-gqa:bits=8",
       "xquant-gqa:alloc=spectrum,bits=8,clip=mse,group=64,rotate=on,"
       "scales=fp16"},
  };
  for (const auto& c : kCases) {
    const auto codec = model.Make(c.given, Isa::kRef);
    ASSERT_TRUE(codec.ok()) << codec.status();
    EXPECT_EQ((*codec)->spec().ToString(), c.canonical);
    const auto again = model.Make(c.canonical, Isa::kRef);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ((*again)->spec().ToString(), c.canonical);
  }
}

TEST(CodecTest, UnknownOptionsAndValuesListWhatIsKnown) {
  const FakeModel model(kShapes[0]);
  const struct {
    const char* spec;
    const char* message;
  } kCases[] = {
      {"xquant-gqa:bits=5", "bits=5: expected one of 2, 3, 4, 8"},
      {"xquant-gqa:group=65", "expected one of 16, 32, 64, 128"},
      {"xquant-gqa:axis=token", "unknown option axis; known: preset=plain"},
      {"xquant:alloc=uniform", "unknown option alloc"},
      {"xquant:rotate=on,axis=channel", "expected axis=token"},
      {"xquant:preset=best", "expected one of plain, refined"},
      {"xquant-cl:base_layers=0", "expected one of 1, 2, 3, 4"},
      {"xquant-cl:base_bits=1", "expected one of 2, 3, 4, 8"},
      {"xquant-cl:x=delta", "expected one of unit, residual, fit"},
      {"xquant-cl-gqa:rotate=on", "expected axis=token"},
      {"xquant-cl-gqa:axis=token,alloc=spectrum", "expected axis=channel"},
      {"kivi:axis=token", "unknown option axis"},
  };
  for (const auto& c : kCases) {
    const auto codec = model.Make(c.spec, Isa::kRef);
    EXPECT_EQ(codec.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(codec.status().message()), HasSubstr(c.message));
  }
}

// Pages must never change without a new version. The golden file has one line a
// spec: its payload's SHA-256 and that of the rows that come back.
TEST(CodecTest, PayloadsAreTheGoldenOnes) {
  const char* source = std::getenv("XCACHE_SOURCE_DIR");
  ASSERT_NE(source, nullptr);
  std::ifstream golden(
      absl::StrCat(source, "/tests/unit/engine/xcache/golden_payloads.txt"));
  ASSERT_TRUE(golden);
  const FakeModel model(kShapes[0]);
  const BlockRows rows(model, 11);
  for (const std::string& spec : Specs()) {
    const auto codec = model.Make(spec, Isa::kRef);
    const auto payload = Sealed(**codec, rows, kSinkTokens);
    const auto restored = Restore(**codec, kShapes[0], kSinkTokens, payload);
    Sha256 digest;
    for (const auto& side : {restored->k, restored->v}) {
      for (const auto& layer : side) {
        digest.Update(layer.data(), layer.size() * sizeof(float));
      }
    }
    const std::string_view bytes(reinterpret_cast<const char*>(payload.data()),
                                 payload.size());
    std::string expected;
    std::getline(golden, expected);
    EXPECT_EQ(absl::StrCat((*codec)->spec().ToString(), " ", payload.size(),
                           " ", ToHex(Sha256Of(bytes)).substr(0, 32), " ",
                           ToHex(digest.Finish()).substr(0, 32)),
              expected);
  }
}

}  // namespace
}  // namespace xcache
