#include "engine/xcache/transform/symbol_coder.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include "engine/kernels/isa.h"
#include "gtest/gtest.h"

namespace xcache {
namespace {

// A Laplacian's magnitudes with the given mean, as counts.
std::vector<double> Counts(double mean) {
  const double decay = mean / (1.0 + mean);
  std::vector<double> counts(100);
  for (size_t v = 0; v < counts.size(); ++v) {
    counts[v] = 1e6 * std::pow(decay, static_cast<double>(v));
  }
  return counts;
}

SymbolTables Tables() {
  std::vector<SymbolFrequencies> all;
  for (int i = 0; i < kNumContexts; ++i) {
    const int magnitude = i % kNumMagnitudes;
    const int activity = i / kNumMagnitudes;
    all.push_back(FrequenciesOf(
        Counts(std::exp2(-6.5 + 9.0 / 22 * magnitude + 0.2 * activity))));
  }
  all.push_back({{kRansTotal}, 0});
  all.push_back({{1024, 1024, 512}, 0});
  auto tables = SymbolTables::Create(all);
  EXPECT_TRUE(tables.ok()) << tables.status();
  return *std::move(tables);
}

// Channels in falling variance, some with values beyond any table.
struct Block {
  std::vector<std::vector<uint32_t>> expectations;
  std::vector<ContextModel> models;
  BlockSymbols symbols;
};

Block SomeBlock(const std::vector<int>& channels, int first_lane,
                uint32_t seed) {
  std::mt19937 random(seed);
  std::exponential_distribution<double> magnitude;
  Block block;
  for (size_t lane = 0; lane < kRansLanes; ++lane) {
    block.symbols.classes[lane] =
        lane < static_cast<size_t>(first_lane)
            ? kUncodedClass
            : static_cast<uint32_t>(random()) % kNumSteps;
  }
  for (int n : channels) {
    std::vector<uint32_t> expectations;
    std::vector<int16_t> symbols;
    for (int c = 0; c < n; ++c) {
      const double mean = 30.0 / (1.0 + c);
      for (int s = 0; s < kNumSteps; ++s) {
        expectations.push_back(static_cast<uint32_t>(
            mean * std::exp2(1.0 - s / 2.0) * kExpectationUnit));
      }
      for (size_t lane = 0; lane < kRansLanes; ++lane) {
        double v = mean * magnitude(random);
        if (random() % 500 == 0)
          v = 32767.0 * std::exp2(-static_cast<double>(random() % 16));
        int value = static_cast<int>(v) * (random() % 2 == 0 ? 1 : -1);
        if (lane < static_cast<size_t>(first_lane)) value = 0;
        symbols.push_back(static_cast<int16_t>(value));
      }
    }
    block.models.emplace_back(expectations);
    block.expectations.push_back(std::move(expectations));
    block.symbols.groups.push_back(std::move(symbols));
  }
  return block;
}

constexpr CorrectionShape kCorrections{9, 70};

// Of two layers, some rows each, small values and some beyond any table.
void AddCorrections(int first_lane, uint32_t seed, BlockSymbols* symbols) {
  std::mt19937 random(seed);
  for (uint32_t layer : {2u, 8u}) {
    LayerCorrection& of = symbols->corrections.emplace_back();
    of.layer = layer;
    of.levels.fill(kNoCorrection);
    of.values.assign(kCorrections.latents * kRansLanes, 0);
    for (auto lane = static_cast<size_t>(first_lane); lane < kRansLanes;
         lane += layer) {
      of.levels[lane] = static_cast<uint8_t>(random() % kNumMagnitudes);
      for (size_t i = lane; i < of.values.size(); i += kRansLanes) {
        const int most = random() % 100 == 0 ? 60000 : 9;
        of.values[i] = static_cast<int16_t>(
            static_cast<int>(random() % static_cast<uint32_t>(most)) -
            most / 2);
      }
    }
  }
}

std::vector<Isa> Isas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
    if (IsaSupported(isa)) isas.push_back(isa);
  }
  return isas;
}

TEST(SymbolCoderTest, EverySymbolComesBackOnEveryInstructionSet) {
  const SymbolTables tables = Tables();
  uint32_t seed = 1;
  for (const std::vector<int>& channels :
       {std::vector<int>{}, {1}, {31, 33}, {0, 32, 200}}) {
    for (int first_lane : {0, 4}) {
      Block block = SomeBlock(channels, first_lane, seed++);
      if (seed % 2 == 0) AddCorrections(first_lane, seed, &block.symbols);
      std::vector<uint8_t> bytes;
      EncodeSymbols(tables, block.models, first_lane, block.symbols, &bytes);
      for (Isa isa : Isas()) {
        BlockSymbols back;
        const absl::Status status =
            DecodeSymbols(tables, block.models, kCorrections, first_lane,
                          GetCodecKernels(isa), bytes, &back);
        ASSERT_TRUE(status.ok()) << status;
        EXPECT_EQ(back.classes, block.symbols.classes);
        EXPECT_EQ(back.groups, block.symbols.groups);
        ASSERT_EQ(back.corrections.size(), block.symbols.corrections.size());
        for (size_t i = 0; i < back.corrections.size(); ++i) {
          const LayerCorrection& a = back.corrections[i];
          const LayerCorrection& b = block.symbols.corrections[i];
          EXPECT_EQ(a.layer, b.layer);
          EXPECT_EQ(a.levels, b.levels);
          EXPECT_EQ(a.values, b.values);
        }
      }
    }
  }
}

// Within 2 % of the tables' own entropy, and the states' 256 bytes.
TEST(SymbolCoderTest, TakesWhatTheTablesSay) {
  const SymbolTables tables = Tables();
  const Block block = SomeBlock({2000}, 0, 5);
  std::vector<uint8_t> bytes;
  EncodeSymbols(tables, block.models, 0, block.symbols, &bytes);
  double bits = 0.0;
  ContextModel::Walk walk(block.models[0], block.symbols.classes.data());
  const int16_t* value = block.symbols.groups[0].data();
  for (int chunk = 0; chunk < block.models[0].num_chunks(); ++chunk) {
    const int16_t* first = value;
    for (int c = 0; c < block.models[0].chunk_channels(chunk); ++c) {
      for (size_t lane = 0; lane < kRansLanes; ++lane, ++value) {
        const size_t table = block.models[0].tables(
                                 chunk)[static_cast<size_t>(c) * kRansClasses +
                                        block.symbols.classes[lane]] +
                             walk.offsets()[lane];
        const bool held = tables.Holds(table, *value);
        bits +=
            kRansBits -
            std::log2(
                tables.range(table, held ? *value : kEscapeSymbol).frequency);
        if (!held) {
          bits += 2 * std::floor(std::log2(std::abs(*value) + 15)) - 6 + 1;
        }
      }
    }
    walk.Advance(first);
  }
  EXPECT_LT(static_cast<double>(bytes.size()), 1.02 * bits / 8 + 300);
  EXPECT_GT(static_cast<double>(bytes.size()), bits / 8);
}

// No damage may pass in silence more often than chance lets it, and none may
// read or write where it must not.
TEST(SymbolCoderTest, DamageIsFound) {
  const SymbolTables tables = Tables();
  Block block = SomeBlock({40, 70}, 4, 9);
  AddCorrections(4, 10, &block.symbols);
  std::vector<uint8_t> bytes;
  EncodeSymbols(tables, block.models, 4, block.symbols, &bytes);
  const auto decode = [&](std::vector<uint8_t> damaged) {
    damaged.shrink_to_fit();
    BlockSymbols back;
    return DecodeSymbols(tables, block.models, kCorrections, 4,
                         GetCodecKernels(Isa::kRef), damaged, &back);
  };
  for (size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_EQ(decode({bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(n)})
                  .code(),
              absl::StatusCode::kInvalidArgument)
        << n;
  }
  std::vector<uint8_t> longer = bytes;
  longer.push_back(0);
  EXPECT_FALSE(decode(longer).ok());
  size_t found = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::vector<uint8_t> flipped = bytes;
    flipped[i] ^= static_cast<uint8_t>(1u << (i % 8));
    found += !decode(flipped).ok();
  }
  // A flip among the escapes may be another value; the page's checksum says so.
  EXPECT_GT(found, bytes.size() * 9 / 10);
}

TEST(SymbolCoderTest, CorrectionsOfWhatIsNotThereAreRefused) {
  const SymbolTables tables = Tables();
  Block block = SomeBlock({40}, 4, 9);
  AddCorrections(4, 10, &block.symbols);
  const auto decode = [&](const std::function<void(BlockSymbols*)>& damage) {
    BlockSymbols symbols = block.symbols;
    damage(&symbols);
    std::vector<uint8_t> bytes;
    EncodeSymbols(tables, block.models, 4, symbols, &bytes);
    BlockSymbols back;
    return DecodeSymbols(tables, block.models, kCorrections, 4,
                         GetCodecKernels(Isa::kRef), bytes, &back);
  };
  EXPECT_TRUE(decode([](BlockSymbols*) {}).ok());
  EXPECT_FALSE(
      decode([](BlockSymbols* s) { s->corrections[0].layer = 0; }).ok());
  EXPECT_FALSE(
      decode([](BlockSymbols* s) { s->corrections[1].layer = 9; }).ok());
  EXPECT_FALSE(decode([](BlockSymbols* s) {
                 std::swap(s->corrections[0], s->corrections[1]);
               }).ok());
  EXPECT_FALSE(decode([](BlockSymbols* s) {
                 s->corrections[0].levels[1] = 3;  // a sink
               }).ok());
  EXPECT_FALSE(decode([](BlockSymbols* s) {
                 s->corrections[0].levels[9] = kNumMagnitudes;
               }).ok());
}

TEST(SymbolTablesTest, FrequenciesFillTheTable) {
  for (double mean : {0.0, 1e-6, 0.01, 0.3, 4.0, 40.0, 1e6}) {
    const SymbolFrequencies f = FrequenciesOf(Counts(mean));
    uint32_t sum = f.escape;
    for (size_t v = 0; v < f.slots.size(); ++v) {
      EXPECT_GE(f.slots[v], 1);
      sum += f.slots[v] * (v == 0 ? 1u : 2u);
    }
    EXPECT_EQ(sum, kRansTotal) << mean;
    EXPECT_GE(f.escape, 1);
    EXPECT_TRUE(SymbolTables::Create({&f, 1}).ok());
  }
  EXPECT_EQ(FrequenciesOf({}).slots[0], kRansTotal / 2);
}

TEST(SymbolTablesTest, RefusesTablesThatAreNotFull) {
  for (const SymbolFrequencies& table :
       std::vector<SymbolFrequencies>{{},
                                      {{kRansTotal - 2}, 1},
                                      {{kRansTotal}, 1},
                                      {{0}, kRansTotal},
                                      {{kRansTotal - 1, 0}, 1},
                                      {{4000, 100}, 1},
                                      {std::vector<uint16_t>(129, 1), 1}}) {
    EXPECT_EQ(SymbolTables::Create({&table, 1}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(ContextModelTest, MagnitudesAreLevelsOfTheLogarithm) {
  EXPECT_EQ(MagnitudeOf(0), 0);
  EXPECT_EQ(MagnitudeOf(~0u), kNumMagnitudes - 1);
  for (int i = 1; i + 1 < kNumMagnitudes; ++i) {
    const double middle = std::exp2(-6.5 + 9.0 / 22 * (i - 0.5));
    EXPECT_EQ(MagnitudeOf(static_cast<uint32_t>(middle * kExpectationUnit)), i);
  }
}

TEST(ContextModelTest, AnActiveTokenTakesOtherTables) {
  // Expects a magnitude of 1 in every channel.
  const std::vector<uint32_t> expectations(96 * kNumSteps, kExpectationUnit);
  const ContextModel model(expectations);
  std::vector<uint32_t> classes(kRansLanes, 2);
  classes[3] = kUncodedClass;
  ContextModel::Walk walk(model, classes.data());
  std::vector<int16_t> symbols(kChunkChannels * kRansLanes, 0);
  for (size_t c = 0; c < kChunkChannels; ++c) {
    symbols[c * kRansLanes + 1] = c % 2 == 0 ? 2 : 0;
    symbols[c * kRansLanes + 2] = -3;
    symbols[c * kRansLanes + 3] = 3;
  }
  for (int chunk = 0; chunk < 2; ++chunk) walk.Advance(symbols.data());
  EXPECT_EQ(walk.offsets()[0], 0u);
  EXPECT_EQ(walk.offsets()[1], 2u * kNumMagnitudes);
  EXPECT_EQ(walk.offsets()[2], 4u * kNumMagnitudes);
  EXPECT_EQ(walk.offsets()[3], 0u);
}

}  // namespace
}  // namespace xcache
