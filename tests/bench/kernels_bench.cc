// How fast the kernels are, on one thread: GOP/s (two operations for each
// multiply-add) or GB/s of weights or K/V read. Run with --benchmark_filter.
// The instruction set is the argument `isa`: 0 reference, 1 AVX2, 2 AVX-512.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "engine/kernels/isa.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/packed.h"

namespace xcache {
namespace {

std::vector<float> RandomFloats(int64_t n) {
  std::mt19937 bits(7);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& x : values) {
    x = static_cast<float>(bits() % 2001) / 1000.0f - 1.0f;
  }
  return values;
}

const Kernels* TableOf(benchmark::State& state, int64_t isa) {
  const Isa wanted = static_cast<Isa>(isa);
  if (!IsaSupported(wanted)) {
    state.SkipWithError("this machine lacks the instruction set");
    return nullptr;
  }
  return &GetKernels(wanted);
}

void Report(benchmark::State& state, const char* name, double each) {
  state.counters[name] =
      benchmark::Counter(each, benchmark::Counter::kIsIterationInvariantRate);
}

// The argument `type`.
constexpr QuantFormat kFormats[] = {
    {.bits = 4, .has_min = true},                                  // 0: Q4_1
    {.bits = 8, .offset = 128},                                    // 1: Q8_0
    {.bits = 4, .has_min = true, .factors = QuantFactors::kOf32},  // 2: Q4_K
    {.bits = 5, .has_min = true, .factors = QuantFactors::kOf32},  // 3: Q5_K
    {.bits = 6, .offset = 32, .factors = QuantFactors::kOf16},     // 4: Q6_K
    {.bits = 2, .has_min = true, .factors = QuantFactors::kOf16},  // 5: Q2_K
    {.bits = 3, .offset = 4, .factors = QuantFactors::kOf16},      // 6: Q3_K
    {.bits = 4, .iq4 = true},                                      // 7: IQ4_NL
    {.bits = 4, .factors = QuantFactors::kOf32, .iq4 = true},      // 8: IQ4_XS
};

PackedMatrix MakeMatrix(int rows, int cols, const QuantFormat& format) {
  auto packed = PackedMatrix::Pack(
      rows, cols, format, [&](int row, int block, WeightBlock* out) {
        const int codes = (1 << format.bits) - 1;
        for (int i = 0; i < kQuantBlock; ++i) {
          out->codes[i] =
              static_cast<uint8_t>((row * 7 + block * 3 + i) % codes);
        }
        out->d = 0.25f;
        out->m = format.has_min ? -0.5f : 0.0f;
        out->scales[0] = 3;
        out->mins[0] = format.has_min ? block % 16 : 0;
      });
  return *std::move(packed);
}

// The baseline of everything that is bound by memory: MiB read in order.
void BM_ReadMemory(benchmark::State& state) {
  AlignedBytes bytes(static_cast<size_t>(state.range(0)) << 20);
  std::memset(bytes.data(), 1, bytes.size());
  const auto* words = reinterpret_cast<const uint64_t*>(bytes.data());
  uint64_t sums[8] = {};
  for (auto _ : state) {
    for (size_t i = 0; i < bytes.size() / 8; i += 8) {
      for (size_t j = 0; j < 8; ++j) sums[j] += words[i + j];
    }
    benchmark::DoNotOptimize(sums);
  }
  Report(state, "GB/s", 1e-9 * static_cast<double>(bytes.size()));
}
BENCHMARK(BM_ReadMemory)->ArgName("MiB")->Arg(32)->Arg(128);

// isa, M, N, K, type
void BM_QuantMatmul(benchmark::State& state) {
  const Kernels* kernels = TableOf(state, state.range(0));
  if (kernels == nullptr) return;
  const int m = static_cast<int>(state.range(1));
  const int n = static_cast<int>(state.range(2));
  const int k = static_cast<int>(state.range(3));
  const PackedMatrix w = MakeMatrix(n, k, kFormats[state.range(4)]);
  const std::vector<float> x = RandomFloats(static_cast<int64_t>(m) * k);
  QuantMatmulArgs args;
  args.a.stride = QuantRowBytes(k);
  args.a.cols = k;
  AlignedBytes rows(static_cast<size_t>(args.a.stride * m));
  args.a.data = rows.data();
  kernels->quantize_rows(x.data(), k, m, args.a);
  std::vector<float> out(static_cast<size_t>(m) * static_cast<size_t>(n));
  args.num_rows = m;
  args.w = w.view();
  args.out = out.data();
  args.out_stride = n;
  for (auto _ : state) {
    kernels->quant_matmul(args, 0, w.num_panels());
    benchmark::ClobberMemory();
  }
  Report(state, "GOP/s", 2e-9 * m * n * k);
  Report(state, "GB/s", 1e-9 * static_cast<double>(w.bytes()));
}
BENCHMARK(BM_QuantMatmul)
    ->ArgNames({"isa", "M", "N", "K", "type"})
    ->ArgsProduct({{2, 1}, {1, 8, 64}, {576}, {576}, {0, 1}})
    ->ArgsProduct({{2, 1}, {1, 8, 64}, {1536}, {576}, {0}})
    ->ArgsProduct({{2, 1}, {1, 8, 64}, {576}, {1536}, {0}})
    ->ArgsProduct({{2, 1}, {1, 8, 64}, {49152}, {576}, {1}})
    ->ArgsProduct({{2, 1}, {1}, {131072}, {1536}, {0}})
    ->ArgsProduct(
        {{2, 1}, {1, 8, 64}, {32768}, {2048}, {0, 1, 2, 3, 4, 5, 6, 7, 8}});

// isa, M
void BM_QuantizeRows(benchmark::State& state) {
  const Kernels* kernels = TableOf(state, state.range(0));
  if (kernels == nullptr) return;
  const int k = 576;
  const int m = static_cast<int>(state.range(1));
  const std::vector<float> x = RandomFloats(static_cast<int64_t>(m) * k);
  QuantRows rows;
  rows.stride = QuantRowBytes(k);
  rows.cols = k;
  AlignedBytes bytes(static_cast<size_t>(rows.stride * m));
  rows.data = bytes.data();
  for (auto _ : state) {
    kernels->quantize_rows(x.data(), k, m, rows);
    benchmark::ClobberMemory();
  }
  Report(state, "Gvalues/s", 1e-9 * m * k);
}
BENCHMARK(BM_QuantizeRows)->ArgNames({"isa", "M"})->ArgsProduct({{2, 1}, {64}});

// isa, M, N, K, FloatType
void BM_FloatMatmul(benchmark::State& state) {
  const Kernels* kernels = TableOf(state, state.range(0));
  if (kernels == nullptr) return;
  const int m = static_cast<int>(state.range(1));
  const int n = static_cast<int>(state.range(2));
  const int k = static_cast<int>(state.range(3));
  const auto type = static_cast<FloatType>(state.range(4));
  const std::vector<float> x = RandomFloats(static_cast<int64_t>(m) * k);
  const std::vector<float> row = RandomFloats(k);
  const auto b = PackedFloat::FromWeightRows(
      n, k, type,
      [&](int, float* values) { std::copy(row.begin(), row.end(), values); });
  std::vector<float> out(static_cast<size_t>(m) * static_cast<size_t>(n));
  FloatMatmulArgs args;
  args.a = x.data();
  args.a_stride = k;
  args.num_rows = m;
  args.b = b->view();
  args.out = out.data();
  args.out_stride = n;
  for (auto _ : state) {
    kernels->float_matmul(args, 0, b->num_panels());
    benchmark::ClobberMemory();
  }
  Report(state, "GOP/s", 2e-9 * m * n * k);
  Report(state, "GB/s", 1e-9 * static_cast<double>(b->bytes()));
}
BENCHMARK(BM_FloatMatmul)
    ->ArgNames({"isa", "M", "N", "K", "type"})
    ->ArgsProduct({{2, 1}, {64}, {192}, {192}, {0}})
    ->ArgsProduct({{2, 1}, {64}, {576}, {192}, {0}})
    ->ArgsProduct({{2, 1}, {64}, {384}, {576}, {0}})
    ->ArgsProduct({{2, 1}, {64}, {4096}, {4096}, {0}})
    ->ArgsProduct({{2, 1}, {1, 64}, {1536}, {576}, {0, 1, 2}});

// isa, tokens, depth: one kv head of 64, three query heads, `tokens` rows that
// end at `depth`. Decode has one token. The working set cycles through enough
// copies (layers) that it does not stay in the caches.
void BM_Attention(benchmark::State& state) {
  const Kernels* kernels = TableOf(state, state.range(0));
  if (kernels == nullptr) return;
  const int tokens = static_cast<int>(state.range(1));
  const int depth = static_cast<int>(state.range(2));
  const int hd = 64;
  const int group = 3;
  const int tiles = (depth + 63) / 64;
  const int copies = tokens == 1 ? 60 : 2;
  const std::vector<float> k = RandomFloats(hd * 64);
  AlignedBytes storage(static_cast<size_t>(copies * tiles * hd * 64 * 4));
  std::vector<const uint16_t*> k_tiles, v_tiles;
  for (int i = 0; i < copies * tiles; ++i) {
    auto* tile = reinterpret_cast<uint16_t*>(storage.data()) +
                 static_cast<int64_t>(i) * hd * 64 * 2;
    StoreKv(*kernels, k.data(), k.data(), hd, 64, hd, 0, tile, tile + hd * 64);
    k_tiles.push_back(tile);
    v_tiles.push_back(tile + hd * 64);
  }
  const std::vector<float> q = RandomFloats(tokens * group * hd);
  std::vector<float> out(q.size());
  AttentionArgs args;
  args.head_dim = hd;
  args.group = group;
  args.num_tokens = tokens;
  args.first_position = depth - tokens;
  args.scale = 0.125f;
  args.q = q.data();
  args.q_stride = group * hd;
  args.out = out.data();
  args.out_stride = group * hd;
  std::vector<float> partials(static_cast<size_t>(2 * PartialFloats(args)));
  AlignedBytes scratch(
      static_cast<size_t>(4 * AttentionScratchFloats(hd, tokens * group)));
  int copy = 0;
  for (auto _ : state) {
    args.k_tiles = k_tiles.data() + copy * tiles;
    args.v_tiles = v_tiles.data() + copy * tiles;
    Attend(*kernels, args, partials.data(),
           reinterpret_cast<float*>(scratch.data()));
    copy = (copy + 1) % copies;
  }
  const double keys = args.first_position + 0.5 * (tokens + 1);
  Report(state, "GOP/s", 4e-9 * tokens * group * keys * hd);
  Report(state, "GB/s", 4e-9 * depth * hd);
}
BENCHMARK(BM_Attention)
    ->ArgNames({"isa", "tokens", "depth"})
    ->ArgsProduct({{2, 1}, {1}, {256, 4096}})
    ->ArgsProduct({{2, 1}, {64}, {64, 512, 4096}});

// isa: all that is done for one row of SmolLM2-135M in a layer, beside products
void BM_RowOps(benchmark::State& state) {
  const Kernels* kernels = TableOf(state, state.range(0));
  if (kernels == nullptr) return;
  std::vector<float> x = RandomFloats(1536);
  const std::vector<float> gain = RandomFloats(1536);
  std::vector<float> out(1536);
  for (auto _ : state) {
    switch (state.range(1)) {
      case 0:
        benchmark::DoNotOptimize(kernels->rms_norm(
            gain.data(), gain.data(), 576, 1e-5f, out.data(), nullptr));
        break;
      case 1:
        kernels->silu_mul(gain.data(), x.data(), 1536, out.data());
        break;
      case 2:
        kernels->add(gain.data(), x.data(), 576, out.data());
        break;
      case 3:
        kernels->rope(x.data(), 12, 64, 64, gain.data(), gain.data() + 64,
                      RopeOrder::kInterleaved);
        break;
    }
    benchmark::ClobberMemory();
  }
}
BENCHMARK(BM_RowOps)
    ->ArgNames({"isa", "op"})
    ->ArgsProduct({{2, 1}, {0, 1, 2, 3}});

}  // namespace
}  // namespace xcache

BENCHMARK_MAIN();
