#include "tests/bench/gpu/synthetic_model.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/crc32c.h"
#include "engine/base/sha256.h"
#include "engine/xcache/little_endian.h"
#include "engine/xcache/profile.h"
#include "tests/support/gguf_writer.h"

namespace xcache::bench {
namespace {

struct Shape {
  const char* name;
  int num_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size;
  float rope_freq_base;
  int context_length;
};

// Touvron et al., "Llama 2", 2023; Grattafiori et al., "The Llama 3 herd of
// models", 2024, table 3.
constexpr Shape kShapes[] = {
    {"llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, 500000.0f, 131072},
    {"llama-2-7b", 32, 4096, 32, 32, 128, 11008, 32000, 10000.0f, 131072},
    {"small", 2, 256, 4, 2, 64, 512, 1024, 10000.0f, 8192},
};

constexpr int kBlockWeights = 32;
constexpr size_t kBlockBytes = 18;  // Q4_0: an FP16 scale, 32 codes

// FP16 bits of a positive power of two that is near `x`.
uint16_t PowerOfTwoHalf(double x) {
  const int exponent =
      std::clamp(static_cast<int>(std::lround(std::log2(x))), -14, 15);
  return static_cast<uint16_t>((exponent + 15) << 10);
}

class Weights {
 public:
  explicit Weights(uint64_t seed)
      : random_(seed), codes_(size_t{1} << 20, '\0') {
    for (char& c : codes_) c = static_cast<char>(random_());
  }

  // Rows that take a unit row to one of about rms 1.
  std::string Matrix(int64_t rows, int64_t cols) {
    const auto blocks = static_cast<size_t>(rows * cols / kBlockWeights);
    std::string bytes(blocks * kBlockBytes, '\0');
    // Codes of -8 to 7 have a deviation of 4.6.
    const uint16_t scale =
        PowerOfTwoHalf(1.0 / (4.6 * std::sqrt(static_cast<double>(cols))));
    size_t at = random_() % codes_.size();
    for (size_t b = 0; b < blocks; ++b) {
      if (at + kBlockBytes > codes_.size()) at = random_() % 512;
      char* to = bytes.data() + b * kBlockBytes;
      StoreLe16(to, scale);
      std::copy_n(codes_.data() + at, kBlockBytes - 2, to + 2);
      at += kBlockBytes - 2;
    }
    return bytes;
  }

 private:
  std::mt19937_64 random_;
  std::string codes_;
};

std::string Ones(int n) {
  const std::vector<float> ones(static_cast<size_t>(n), 1.0f);
  return testing::Quantize(GgufType::kF32, ones);
}

std::string FileBytes(const Shape& s, uint64_t seed) {
  testing::GgufWriter w;
  const auto u32 = [&w](const char* key, int value) {
    w.SetUint32(key, static_cast<uint32_t>(value));
  };
  w.SetString("general.architecture", "llama");
  w.SetString("general.name", absl::StrCat("synthetic ", s.name));
  u32("llama.block_count", s.num_layers);
  u32("llama.context_length", s.context_length);
  u32("llama.embedding_length", s.d_model);
  u32("llama.feed_forward_length", s.d_ff);
  u32("llama.attention.head_count", s.n_heads);
  u32("llama.attention.head_count_kv", s.n_kv_heads);
  u32("llama.attention.key_length", s.head_dim);
  u32("llama.attention.value_length", s.head_dim);
  u32("llama.rope.dimension_count", s.head_dim);
  u32("llama.vocab_size", s.vocab_size);
  w.SetFloat("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  w.SetFloat("llama.rope.freq_base", s.rope_freq_base);

  std::vector<std::string> tokens;
  for (int i = 0; i < s.vocab_size; ++i) tokens.push_back(absl::StrCat("t", i));
  w.SetStrings("tokenizer.ggml.tokens", tokens);

  Weights weights(seed);
  const auto matrix = [&](const std::string& name, int rows, int cols) {
    w.SetTensor(name, {cols, rows}, GgufType::kQ4_0,
                weights.Matrix(rows, cols));
  };
  const auto vector = [&](const std::string& name) {
    w.SetTensor(name, {s.d_model}, GgufType::kF32, Ones(s.d_model));
  };
  const int q = s.n_heads * s.head_dim, k = s.n_kv_heads * s.head_dim;
  matrix("token_embd.weight", s.vocab_size, s.d_model);
  matrix("output.weight", s.vocab_size, s.d_model);
  vector("output_norm.weight");
  for (int i = 0; i < s.num_layers; ++i) {
    const std::string prefix = absl::StrCat("blk.", i, ".");
    vector(prefix + "attn_norm.weight");
    vector(prefix + "ffn_norm.weight");
    matrix(prefix + "attn_q.weight", q, s.d_model);
    matrix(prefix + "attn_k.weight", k, s.d_model);
    matrix(prefix + "attn_v.weight", k, s.d_model);
    matrix(prefix + "attn_output.weight", s.d_model, q);
    matrix(prefix + "ffn_gate.weight", s.d_ff, s.d_model);
    matrix(prefix + "ffn_up.weight", s.d_ff, s.d_model);
    matrix(prefix + "ffn_down.weight", s.d_model, s.d_ff);
  }
  return w.Finish();
}

}  // namespace

std::vector<std::string> SyntheticShapes() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

absl::StatusOr<std::shared_ptr<const Model>> MakeSyntheticModel(
    const std::string& shape, uint64_t seed) {
  const auto found =
      std::find_if(std::begin(kShapes), std::end(kShapes),
                   [&](const Shape& s) { return shape == s.name; });
  if (found == std::end(kShapes)) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown shape '", shape,
                     "'; known: ", absl::StrJoin(SyntheticShapes(), ", ")));
  }
  // A file that is memory: models are mapped.
  const int fd = ::memfd_create("xcache-synthetic", 0);
  if (fd < 0) return absl::InternalError("memfd_create failed");
  const std::string path = absl::StrCat("/proc/self/fd/", fd);
  {
    const std::string bytes = FileBytes(*found, seed);
    std::ofstream out(path, std::ios::binary);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!out.flush()) {
      ::close(fd);
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for ", bytes.size(), " bytes of weights"));
    }
  }
  auto model = Model::Load(path);
  ::close(fd);
  return model;
}

absl::Status WriteSyntheticProfile(const Model& model, ProfileKind kind,
                                   const std::string& dir) {
  if (kind == ProfileKind::kNone) return absl::OkStatus();
  const HyperParams& h = model.hparams();
  const auto d = static_cast<size_t>(h.d_model);
  const auto k = static_cast<size_t>(h.kv_dim());
  // Of a basis: vectors, and their elements.
  const bool both = kind == ProfileKind::kClGqaSvd;
  const size_t rank = both ? std::min(d, 2 * k) : k;
  const size_t width = both ? d : k;
  std::vector<float> values;
  values.reserve(static_cast<size_t>(h.num_layers) * rank * (width + 1));
  for (int layer = 0; layer < h.num_layers; ++layer) {
    // A spectrum that falls, so that widths differ as they do in real models.
    for (size_t i = 0; i < rank; ++i) {
      values.push_back(1.0f / (1.0f + 16.0f * static_cast<float>(i) /
                                          static_cast<float>(rank)));
    }
    for (size_t i = 0; i < rank * width; ++i) {
      values.push_back(i % (width + 1) == 0 ? 1.0f : 0.0f);
    }
  }
  // PROFILE_FORMAT.md.
  const size_t matrices = values.size() * sizeof(float);
  std::string bytes(64 + matrices + 4, '\0');
  StoreLe32(&bytes[0], 0x46504358);
  StoreLe16(&bytes[4], 1);
  StoreLe16(&bytes[6], 64);
  StoreLe32(&bytes[8], static_cast<uint32_t>(kind));
  StoreLe32(&bytes[12], static_cast<uint32_t>(h.num_layers));
  StoreLe32(&bytes[16], static_cast<uint32_t>(h.d_model));
  StoreLe32(&bytes[20], static_cast<uint32_t>(k));
  StoreLe64(&bytes[24], matrices);
  std::copy(model.fingerprint().begin(), model.fingerprint().end(),
            bytes.begin() + 32);
  std::copy_n(reinterpret_cast<const char*>(values.data()), matrices,
              bytes.begin() + 64);
  StoreLe32(&bytes[64 + matrices], Crc32c(bytes.data(), 64 + matrices));
  const std::string path =
      absl::StrCat(dir, "/", std::string(ProfileKindName(kind)), "-",
                   ToHex(model.fingerprint()).substr(0, 16), ".xcpf");
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!out.flush()) {
    return absl::InternalError(absl::StrCat("cannot write ", path));
  }
  return absl::OkStatus();
}

}  // namespace xcache::bench
