#include "engine/cpu/weights_cache.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/thread_pool.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;

class WeightsCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = fs::temp_directory_path() / "weights_cache.XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  static std::shared_ptr<const Model> MakeModel(uint32_t seed = 1) {
    testing::TinyModelOptions options;
    options.num_layers = 2;
    options.d_model = 256;
    options.n_heads = 8;
    options.d_ff = 256;
    options.matrix_type = GgufType::kQ4_K;
    options.embedding_type = GgufType::kF16;
    options.seed = seed;
    return testing::MakeTinyModel(options);
  }
  CpuWeights Pack(const Model& model, bool cached = true) {
    PackOptions options;
    if (cached) options.cache_dir = folder_;
    auto weights = PackWeights(model, options, pool_, nullptr);
    EXPECT_TRUE(weights.ok()) << weights.status();
    return *std::move(weights);
  }
  // Of all matrices, one after the other.
  static std::string Bytes(const CpuWeights& weights) {
    std::string all;
    const auto add = [&all](const CpuMatrix& m) {
      all.append(reinterpret_cast<const char*>(m.data()), m.bytes());
    };
    for (const CpuLayer& l : weights.layers) {
      for (const CpuMatrix* m :
           {&l.wq, &l.wk, &l.wv, &l.wo, &l.w_gate, &l.w_up, &l.w_down}) {
        add(*m);
      }
    }
    add(weights.output);
    return all;
  }
  // The one file that is there.
  std::string Path() const {
    const std::vector<fs::directory_entry> all(fs::directory_iterator(folder_),
                                               {});
    EXPECT_EQ(all.size(), 1u);
    return all.empty() ? "" : all[0].path().string();
  }
  static std::string FileOf(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static void WriteFile(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
  }
  static auto TimeOf(const std::string& path) {
    return fs::last_write_time(path);
  }

  ThreadPool pool_{2};
  std::string folder_;
};

TEST_F(WeightsCacheTest, IsReadAsItWasPacked) {
  const auto model = MakeModel();
  const std::string want = Bytes(Pack(*model, /*cached=*/false));
  EXPECT_EQ(Bytes(Pack(*model)), want);
  const std::string path = Path();
  const std::string file = FileOf(path);
  const auto old = TimeOf(path) - std::chrono::hours(1);
  fs::last_write_time(path, old);
  EXPECT_EQ(Bytes(Pack(*model)), want);
  EXPECT_EQ(TimeOf(path), old);  // not written again
  EXPECT_EQ(FileOf(path), file);
}

TEST_F(WeightsCacheTest, TakesItsBytesFromTheFile) {
  const auto model = MakeModel(), other = MakeModel(2);
  const std::string of_other = Bytes(Pack(*other));
  const std::string path = Path();
  std::string file = FileOf(path);
  fs::remove(path);
  Pack(*model);
  // What the other model's weights are, said to be this one's.
  const Digest& fp = model->fingerprint();
  std::memcpy(file.data() + 16, fp.data(), fp.size());
  WriteFile(Path(), file);
  EXPECT_EQ(Bytes(Pack(*model)), of_other);
}

TEST_F(WeightsCacheTest, AnotherModelsFileIsMadeAnew) {
  const auto model = MakeModel(), other = MakeModel(2);
  Pack(*other);
  const std::string file = FileOf(Path());
  fs::remove(Path());
  const std::string want = Bytes(Pack(*model));
  const std::string path = Path(), own = FileOf(path);
  WriteFile(path, file);  // under this one's name
  EXPECT_EQ(Bytes(Pack(*model)), want);
  EXPECT_EQ(FileOf(path), own);
}

TEST_F(WeightsCacheTest, DamageIsFoundAndTheFileMadeAnew) {
  const auto model = MakeModel();
  const std::string want = Bytes(Pack(*model));
  const std::string path = Path(), own = FileOf(path);
  std::vector<size_t> places;  // the head, digests, and some of the weights
  for (size_t at = 0; at < 80 + 32; ++at) places.push_back(at);
  for (size_t at = 112; at < own.size(); at += own.size() / 37) {
    places.push_back(at);
  }
  for (const size_t at : places) {
    std::string damaged = own;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    WriteFile(path, damaged);
    EXPECT_EQ(Bytes(Pack(*model)), want) << at;
    EXPECT_EQ(FileOf(path), own) << at;
  }
}

TEST_F(WeightsCacheTest, TruncatedOrNoFileAtAll) {
  const auto model = MakeModel();
  const std::string want = Bytes(Pack(*model));
  const std::string path = Path(), own = FileOf(path);
  for (const size_t size : {size_t{0}, size_t{7}, size_t{79}, size_t{200},
                            own.size() / 2, own.size() - 1, own.size() + 1}) {
    std::string other = own;
    other.resize(size);
    WriteFile(path, other);
    EXPECT_EQ(Bytes(Pack(*model)), want) << size;
    EXPECT_EQ(FileOf(path), own) << size;
  }
  fs::remove(path);
  fs::create_directory(path);  // cannot be replaced either
  EXPECT_EQ(Bytes(Pack(*model)), want);
  EXPECT_TRUE(fs::is_directory(path));
  EXPECT_EQ(Path(), path);  // nothing is left beside it
}

TEST_F(WeightsCacheTest, AFolderThatCannotBeWrittenStopsNothing) {
  const auto model = MakeModel();
  const std::string want = Bytes(Pack(*model, /*cached=*/false));
  fs::remove_all(folder_);
  EXPECT_EQ(Bytes(Pack(*model)), want);
}

}  // namespace
}  // namespace xcache
