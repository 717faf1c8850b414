#include "engine/device/kernels/packed_tile.h"

#include <random>
#include <vector>

#include "engine/kernels/codec_kernels.h"
#include "gtest/gtest.h"

namespace xcache::cuda {
namespace {

TEST(PackedTileTest, EveryCodeOfEveryShapeIsFoundWhereTheCpuPacksIt) {
  std::mt19937 rng(7);
  const CodecKernels& kernels = GetCodecKernels(Isa::kRef);
  for (int bits = 1; bits <= 8; ++bits) {
    for (int num_values : {1, 7, 8, 9, 60, 64, 65}) {
      for (int num_groups : {1, 3, 15, 16, 17, 33, 192}) {
        const TileShape shape{num_values, num_groups, bits};
        std::vector<uint8_t> codes(
            static_cast<size_t>(num_values * num_groups));
        for (uint8_t& code : codes) {
          code = static_cast<uint8_t>(rng() & ((1u << bits) - 1));
        }
        std::vector<uint8_t> packed(
            PackedTileBytes(num_values, num_groups, bits));
        ASSERT_EQ(packed.size(), static_cast<size_t>(bits * PlaneBytes(shape)));
        PackTileArgs args;
        args.codes = codes.data();
        args.codes_stride = num_groups;
        args.num_values = num_values;
        args.num_groups = num_groups;
        args.bits = bits;
        args.packed = packed.data();
        kernels.pack_tile(args);
        for (int value = 0; value < num_values; ++value) {
          for (int group = 0; group < num_groups; ++group) {
            const uint64_t octet =
                CodesOfOctet(packed.data(), shape, value / 8, group);
            ASSERT_EQ(CodeOf(octet, value % 8),
                      codes[static_cast<size_t>(value * num_groups + group)])
                << bits << " bits, " << num_values << " x " << num_groups
                << ", value " << value << ", group " << group;
            ASSERT_EQ(CodeAsFloat(octet, value % 8),
                      static_cast<float>(CodeOf(octet, value % 8)));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace xcache::cuda
