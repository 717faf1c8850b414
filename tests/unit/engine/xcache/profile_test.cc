#include "engine/xcache/profile.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/base/crc32c.h"
#include "engine/xcache/little_endian.h"
#include "engine/xcache/profile_impl.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/engine/xcache/codec_test_util.h"

namespace xcache {
namespace {

using ::testing::HasSubstr;

constexpr ProfileKind kKind = ProfileKind::kGqaSvd;

class TempDir {
 public:
  TempDir() : path_(::testing::TempDir() + "/profile.XXXXXX") {
    EXPECT_NE(mkdtemp(path_.data()), nullptr);
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  std::vector<std::string> Files() const {
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      files.push_back(entry.path());
    }
    return files;
  }

 private:
  std::string path_;
};

std::string Contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::unique_ptr<const Profile> MadeProfile(const Model& model) {
  auto profile = Profile::Make(model, kKind, nullptr);
  EXPECT_TRUE(profile.ok()) << profile.status();
  return *std::move(profile);
}

// W = U S B^T: the basis is orthogonal, W^T W B = B S^2, signs are fixed.
TEST(ProfileTest, IsTheDecompositionOfWk) {
  const ProfileShape shape{kKind, 2, 48, 24};
  Numbers numbers(3);
  const std::vector<float> w = numbers.Vector(2 * 24 * 48);  // [2][k][d]
  const std::vector<float> values = MakeGqaSvd(
      shape,
      [&](int layer, Projection projection, float* out) {
        ASSERT_EQ(projection, Projection::kKey);
        std::copy_n(&w[static_cast<size_t>(layer) * 24 * 48], 24 * 48, out);
      },
      nullptr);
  const auto profile = NewProfile(shape, Digest{}, values);
  for (int layer = 0; layer < 2; ++layer) {
    const auto spectrum = profile->matrix(layer, "k_spectrum");
    const auto basis = profile->matrix(layer, "k_basis");
    ASSERT_EQ(spectrum.size(), 24u);
    ASSERT_EQ(basis.size(), 24u * 24u);
    EXPECT_TRUE(std::is_sorted(spectrum.rbegin(), spectrum.rend()));
    const float* wk = &w[static_cast<size_t>(layer) * 24 * 48];
    for (size_t i = 0; i < 24; ++i) {
      const float* b = &basis[i * 24];
      for (size_t j = 0; j < 24; ++j) {
        double dot = 0.0;
        for (size_t c = 0; c < 24; ++c) dot += double{b[c]} * basis[j * 24 + c];
        EXPECT_NEAR(dot, i == j ? 1.0 : 0.0, 1e-6);
      }
      // || u-space image of b || is the singular value.
      double norm = 0.0;
      for (size_t d = 0; d < 48; ++d) {
        double sum = 0.0;
        for (size_t c = 0; c < 24; ++c) sum += double{wk[c * 48 + d]} * b[c];
        norm += sum * sum;
      }
      EXPECT_NEAR(std::sqrt(norm), spectrum[i], 1e-4);
      const float* largest = std::max_element(b, b + 24, [](float x, float y) {
        return std::fabs(x) < std::fabs(y);
      });
      EXPECT_GT(*largest, 0.0f);
    }
  }
}

// [W_k | W_v] = U S B^T: the rows of the basis, U^T, are orthonormal also where
// the weights have less than full rank, and U U^T W = W.
TEST(ProfileTest, ClGqaBasisSpansWkAndWv) {
  const struct {
    uint32_t d, k;
    bool deficient;
  } kCases[] = {{48, 12, false}, {48, 12, true}, {20, 16, false}};
  for (const auto& c : kCases) {
    const ProfileShape shape{ProfileKind::kClGqaSvd, 2, c.d, c.k};
    const size_t d = c.d, k = c.k, rank = std::min(d, 2 * k);
    std::vector<float> w = Numbers(3).Vector(4 * k * d);  // [2][K, V][k][d]
    // Then half of V repeats K.
    for (size_t i = 0; c.deficient && i < k * d / 2; ++i) w[k * d + i] = w[i];
    const auto profile = NewProfile(
        shape, Digest{},
        MakeClGqaSvd(
            shape,
            [&](int layer, Projection projection, float* out) {
              const size_t side = projection == Projection::kKey ? 0 : 1;
              std::copy_n(&w[(static_cast<size_t>(layer) * 2 + side) * k * d],
                          k * d, out);
            },
            nullptr));
    for (size_t layer = 0; layer < 2; ++layer) {
      const auto spectrum =
          profile->matrix(static_cast<int>(layer), "kv_spectrum");
      const auto basis = profile->matrix(static_cast<int>(layer), "kv_basis");
      ASSERT_EQ(spectrum.size(), rank);
      ASSERT_EQ(basis.size(), rank * d);
      EXPECT_TRUE(std::is_sorted(spectrum.rbegin(), spectrum.rend()));
      const auto dot = [d](const float* a, const float* b) {
        double sum = 0.0;
        for (size_t i = 0; i < d; ++i) sum += static_cast<double>(a[i]) * b[i];
        return sum;
      };
      for (size_t i = 0; i < rank; ++i) {
        const float* row = &basis[i * d];
        const float* largest = std::max_element(
            row, row + d,
            [](float a, float b) { return std::fabs(a) < std::fabs(b); });
        EXPECT_GT(*largest, 0.0f) << i;
        for (size_t j = 0; j <= i; ++j) {
          EXPECT_NEAR(dot(row, &basis[j * d]), i == j ? 1.0 : 0.0, 1e-6);
        }
      }
      for (size_t column = 0; column < 2 * k; ++column) {
        const float* weights = &w[(layer * 2 * k + column) * d];
        double left = dot(weights, weights);
        for (size_t i = 0; i < rank; ++i) {
          const double part = dot(weights, &basis[i * d]);
          left -= part * part;
        }
        EXPECT_NEAR(left, 0.0, 1e-4) << column;
      }
    }
  }
}

TEST(ProfileTest, FoldsTheNormsGain) {
  testing::TinyModelOptions options;
  options.matrix_type = GgufType::kF32;
  const auto model = testing::MakeTinyModel(options);
  const auto profile = MadeProfile(*model);
  // The squares of the singular values sum to the squares of the weights.
  const LayerTensors& layer = model->layer(1);
  std::vector<float> gain(64), row(64);
  DequantizeRow(layer.attn_norm, 0, gain.data());
  double expected = 0.0;
  for (int64_t r = 0; r < layer.wk.rows; ++r) {
    DequantizeRow(layer.wk, r, row.data());
    for (size_t i = 0; i < 64; ++i) {
      expected += std::pow(double{row[i]} * gain[i], 2);
    }
  }
  double found = 0.0;
  for (float s : profile->matrix(1, "k_spectrum")) found += double{s} * s;
  EXPECT_NEAR(found, expected, 1e-4 * expected);
}

TEST(ProfileTest, IsByteIdenticalWhenMadeAgain) {
  const auto model = testing::MakeTinyModel({});
  const auto a = MadeProfile(*model), b = MadeProfile(*model);
  EXPECT_EQ(a->Serialize(), b->Serialize());
  EXPECT_EQ(a->digest(), b->digest());
  EXPECT_EQ(a->digest(), Sha256Of(a->Serialize()));
}

TEST(ProfileTest, ParsesWhatItSerializes) {
  const auto model = testing::MakeTinyModel({});
  const auto profile = MadeProfile(*model);
  const std::string bytes = profile->Serialize();
  const auto parsed = Profile::Parse(bytes, model->fingerprint(), kKind);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ((*parsed)->Serialize(), bytes);
  EXPECT_EQ((*parsed)->digest(), profile->digest());
  EXPECT_EQ((*parsed)->kind(), kKind);
  EXPECT_TRUE((*parsed)->matrix(0, "no such matrix").empty());
}

TEST(ProfileTest, ReportsProgressUpToOne) {
  const auto model = testing::MakeTinyModel({});
  std::vector<double> seen;
  ASSERT_TRUE(Profile::Make(*model, kKind, [&](std::string_view, double f) {
                seen.push_back(f);
              }).ok());
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  ASSERT_FALSE(seen.empty());
  EXPECT_EQ(seen.back(), 1.0);
}

TEST(ProfileTest, FlipsAndTruncationsAreErrors) {
  testing::TinyModelOptions options;
  options.num_layers = 1;
  const auto model = testing::MakeTinyModel(options);
  const std::string bytes = MadeProfile(*model)->Serialize();
  const auto code = [&](const std::string& text) {
    return Profile::Parse(text, model->fingerprint(), kKind).status().code();
  };
  for (size_t at = 0; at < bytes.size(); at += at < 64 ? 1 : 37) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = bytes;
      bad[at] = static_cast<char>(bad[at] ^ (1 << bit));
      EXPECT_EQ(code(bad), at == 4 || at == 5
                               ? absl::StatusCode::kFailedPrecondition
                               : absl::StatusCode::kDataLoss)
          << at;
    }
  }
  for (size_t n = 0; n < bytes.size(); n += n < 80 ? 1 : 41) {
    EXPECT_EQ(code(bytes.substr(0, n)), absl::StatusCode::kDataLoss) << n;
  }
  EXPECT_EQ(code(bytes + "x"), absl::StatusCode::kDataLoss);
}

// With a checksum that fits, the fields themselves are checked.
TEST(ProfileTest, WrongFieldsAreNoticed) {
  testing::TinyModelOptions options;
  options.num_layers = 1;
  const auto model = testing::MakeTinyModel(options);
  const std::string bytes = MadeProfile(*model)->Serialize();
  const auto patched = [&](size_t at, uint32_t value) {
    std::string bad = bytes;
    StoreLe32(&bad[at], value);
    StoreLe32(&bad[bad.size() - 4], Crc32c(bad.data(), bad.size() - 4));
    return Profile::Parse(bad, model->fingerprint(), kKind).status().code();
  };
  EXPECT_EQ(patched(8, 9), absl::StatusCode::kFailedPrecondition);
  for (size_t at : {size_t{12}, size_t{16}, size_t{20}}) {
    EXPECT_EQ(patched(at, 0), absl::StatusCode::kDataLoss) << at;
    EXPECT_EQ(patched(at, 0xffffffff), absl::StatusCode::kDataLoss) << at;
  }
  EXPECT_EQ(patched(12, 2), absl::StatusCode::kDataLoss);
  EXPECT_EQ(patched(20, 31), absl::StatusCode::kDataLoss);
  EXPECT_EQ(patched(24, 1), absl::StatusCode::kDataLoss);
  EXPECT_EQ(patched(32, 0), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(patched(64, 0x7f800000), absl::StatusCode::kDataLoss);
}

TEST(ProfileTest, IsKeptAndLoadedAgain) {
  const TempDir dir;
  const auto model = testing::MakeTinyModel({});
  const auto made = Profile::LoadOrMake(dir.path(), *model, kKind, nullptr);
  ASSERT_TRUE(made.ok()) << made.status();
  ASSERT_EQ(dir.Files().size(), 1u);
  const std::string path = dir.Files()[0];
  EXPECT_THAT(path, HasSubstr("gqa-svd-"));
  EXPECT_EQ(Contents(path), (*made)->Serialize());
  bool remade = false;
  const auto loaded =
      Profile::LoadOrMake(dir.path(), *model, kKind,
                          [&](std::string_view, double) { remade = true; });
  ASSERT_TRUE(loaded.ok());
  EXPECT_FALSE(remade);
  EXPECT_EQ((*loaded)->digest(), (*made)->digest());
}

TEST(ProfileTest, CorruptOrForeignFilesAreMadeAnew) {
  const TempDir dir;
  const auto model = testing::MakeTinyModel({});
  const auto made = Profile::LoadOrMake(dir.path(), *model, kKind, nullptr);
  ASSERT_TRUE(made.ok());
  const std::string path = dir.Files()[0];
  const std::string good = Contents(path);
  testing::TinyModelOptions other;
  other.seed = 2;
  const std::string foreign =
      MadeProfile(*testing::MakeTinyModel(other))->Serialize();
  for (const std::string& bad :
       {std::string(), good.substr(0, 100), foreign, good + "x"}) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bad;
    const auto again = Profile::LoadOrMake(dir.path(), *model, kKind, nullptr);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ((*again)->digest(), (*made)->digest());
    EXPECT_EQ(Contents(path), good);
    EXPECT_EQ(dir.Files().size(), 1u);  // and no temporary is left
  }
}

TEST(ProfileTest, EmptyDirKeepsNothing) {
  const auto model = testing::MakeTinyModel({});
  const auto made = Profile::LoadOrMake("", *model, kKind, nullptr);
  EXPECT_TRUE(made.ok()) << made.status();
}

TEST(ProfileTest, AFolderThatCannotBeMadeIsAnError) {
  const auto model = testing::MakeTinyModel({});
  const auto made =
      Profile::LoadOrMake("/dev/null/profiles", *model, kKind, nullptr);
  EXPECT_FALSE(made.ok());
  EXPECT_THAT(std::string(made.status().message()), HasSubstr("/dev/null"));
}

}  // namespace
}  // namespace xcache
