#include <cstring>
#include <string>
#include <vector>

#include "engine/xcache/codec.h"
#include "engine/xcache/codec_impl.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace xcache {
namespace {

using ::testing::HasSubstr;

CodecSources Sources() {
  CodecSources sources;
  sources.shape = {.num_layers = 3, .d_model = 20, .kv_dim = 12};
  return sources;
}
constexpr size_t kSide = kBlockTokens * 12;

class KvFp16Test : public ::testing::Test {
 protected:
  KvFp16Test() {
    codec_ = *MakeKvFp16(CodecSpec{"kv-fp16", {}}, Sources(), Isa::kRef);
    for (size_t i = 0; i < rows_.size(); ++i) {
      // Every finite pattern is fair, subnormals and negative zero included.
      rows_[i] = static_cast<uint16_t>((i * 2654435761u >> 7) & 0xfbffu);
      if ((rows_[i] & 0x7c00u) == 0x7c00u) rows_[i] = 0x8000u;
    }
  }

  absl::Status Seal(int first_row) {
    payload_.assign(codec_->payload_bytes(), 0xee);
    return codec_->Seal(
        [this](int layer) {
          LayerRows rows;
          rows.k_final = &rows_[static_cast<size_t>(layer) * 2 * kSide];
          rows.v_final = rows.k_final + kSide;
          return rows;
        },
        first_row, payload_);
  }

  std::unique_ptr<const Codec> codec_;
  std::vector<uint16_t> rows_ = std::vector<uint16_t>(3 * 2 * kSide);
  std::vector<uint8_t> payload_;
};

TEST_F(KvFp16Test, IsLossless) {
  EXPECT_EQ(codec_->payload_bytes(), 3 * 2 * kSide * 2);
  for (int first_row : {0, kSinkTokens}) {
    ASSERT_TRUE(Seal(first_row).ok());
    int layers = 0;
    const size_t skip = static_cast<size_t>(first_row) * 12;
    ASSERT_TRUE(
        codec_
            ->Remat(payload_, first_row,
                    [&](int layer, const RematRows& rows) {
                      EXPECT_EQ(layer, layers++);
                      const uint16_t* k =
                          &rows_[static_cast<size_t>(layer) * 2 * kSide];
                      EXPECT_EQ(std::memcmp(rows.k_final + skip, k + skip,
                                            2 * (kSide - skip)),
                                0);
                      EXPECT_EQ(
                          std::memcmp(rows.v_final + skip, k + kSide + skip,
                                      2 * (kSide - skip)),
                          0);
                    })
            .ok());
    EXPECT_EQ(layers, 3);
  }
}

TEST_F(KvFp16Test, SinksAreZerosInThePage) {
  rows_[0] = 0x7c00u;  // not read: no error
  ASSERT_TRUE(Seal(kSinkTokens).ok());
  const std::vector<uint8_t> zeros(2 * kSinkTokens * 12, 0);
  for (size_t side = 0; side < 6; ++side) {
    EXPECT_EQ(
        std::memcmp(&payload_[side * 2 * kSide], zeros.data(), zeros.size()),
        0);
  }
}

TEST_F(KvFp16Test, NotFiniteNamesLayerAndRow) {
  rows_[2 * kSide + kSide + 13 * 12 + 5] = 0xfc00u;  // layer 1, V, row 13
  const absl::Status status = Seal(0);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("V is not finite at layer 1, row 13"));
}

TEST_F(KvFp16Test, WrongPayloadSizeIsInvalidArgument) {
  ASSERT_TRUE(Seal(0).ok());
  payload_.pop_back();
  EXPECT_EQ(codec_->Remat(payload_, 0, [](int, const RematRows&) {}).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(KvFp16Test, TakesNoOptions) {
  const auto codec =
      MakeKvFp16(*CodecSpec::Parse("kv-fp16:bits=4"), Sources(), Isa::kRef);
  EXPECT_EQ(codec.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(codec.status().message(),
            "codec kv-fp16: unknown option bits; it takes none");
}

}  // namespace
}  // namespace xcache
