#include "engine/kernels/rans.h"

#include <random>
#include <vector>

#include "engine/kernels/codec_kernels.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/kernels/kernel_test_util.h"

namespace xcache {
namespace {

class RansTest : public KernelTest {};
XCACHE_FOR_EVERY_ISA(RansTest);

// Tables of random frequencies: symbol 0 has most slots, or all.
std::vector<RansSlot> RandomTables(size_t n, std::mt19937& random) {
  std::vector<RansSlot> slots;
  for (size_t t = 0; t < n; ++t) {
    uint32_t at = 0;
    for (int symbol = 0; at < kRansTotal; ++symbol) {
      const uint32_t left = kRansTotal - at;
      uint32_t frequency = 1 + static_cast<uint32_t>(random()) % left;
      if (t == 0 || symbol == 100) frequency = left;
      for (uint32_t i = 0; i < frequency; ++i) {
        slots.push_back(MakeRansSlot(at + i, at, frequency,
                                     symbol % 2 == 0 ? symbol : -symbol));
      }
      at += frequency;
    }
  }
  return slots;
}

struct Decoded {
  std::vector<uint32_t> states;
  std::vector<int16_t> symbols;
  ptrdiff_t taken = 0;

  bool operator==(const Decoded&) const = default;
};

// Any states and words decode to something, on every instruction set to the
// same.
TEST_P(RansTest, DecodesLikeTheReference) {
  std::mt19937 random(11);
  constexpr size_t kTables = 40;
  const std::vector<RansSlot> slots = RandomTables(kTables, random);
  for (int rounds : {0, 1, 2, 3, 17, 64}) {
    std::vector<uint8_t> tables(static_cast<size_t>(rounds) * kRansClasses);
    for (uint8_t& t : tables) t = static_cast<uint8_t>(random() % 20);
    std::vector<uint32_t> classes(kRansLanes), offsets(kRansLanes),
        states(kRansLanes);
    for (size_t lane = 0; lane < kRansLanes; ++lane) {
      classes[lane] = static_cast<uint32_t>(random()) % kRansClasses;
      offsets[lane] = static_cast<uint32_t>(random()) % 20;
      states[lane] = std::max(kRansLowest, static_cast<uint32_t>(random()));
    }
    // No byte more than what may be read: a sanitizer sees a read past it.
    std::vector<uint8_t> words(static_cast<size_t>(rounds) * kRansRoundBytes);
    for (uint8_t& w : words) w = static_cast<uint8_t>(random());
    const auto decode = [&](const CodecKernels& kernels) {
      Decoded out{
          states,
          std::vector<int16_t>(static_cast<size_t>(rounds) * kRansLanes, -7),
          0};
      RansDecodeArgs args;
      args.slots = slots.data();
      args.tables = tables.data();
      args.classes = classes.data();
      args.offsets = offsets.data();
      args.num_rounds = rounds;
      args.states = out.states.data();
      args.words = words.data();
      args.symbols = out.symbols.data();
      out.taken = kernels.rans_decode(args) - words.data();
      return out;
    };
    const Decoded expected = decode(GetCodecKernels(Isa::kRef));
    EXPECT_EQ(decode(GetCodecKernels(GetParam())), expected) << rounds;
    // Large states last for some symbols.
    if (rounds > 16) {
      EXPECT_GT(expected.taken, 0);
    }
  }
}

}  // namespace
}  // namespace xcache
