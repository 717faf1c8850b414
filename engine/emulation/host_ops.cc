#include "engine/emulation/host_ops.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <vector>

#include "engine/device/kernels/attention.h"
#include "engine/device/kernels/cross_layer.h"
#include "engine/device/kernels/dequantize.h"
#include "engine/device/kernels/fused_remat.h"
#include "engine/device/kernels/quantize.h"
#include "engine/device/kernels/quantized_weights.h"
#include "engine/device/kernels/rows.h"

namespace xcache::cuda {
namespace {

constexpr size_t kAlignment = 256;
// NaN as FP32, FP16 and BF16.
constexpr int kPoison = 0xff;

float HalfValue(HalfType type, uint16_t half) {
  return type == HalfType::kBf16 ? Bf16ToF32(half) : F16ToF32(half);
}

void RunGemm(const GemmArgs& args) {
  // In 16 sums, whatever the number of rows, so that compilers may use vectors.
  constexpr int kSums = 16;
  const auto k = static_cast<size_t>(args.k);
  std::vector<float> w(k), a(k);
  std::vector<float> rows(static_cast<size_t>(args.num_rows) * k);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i] = HalfValue(args.type, args.a[i]);
  }
  for (int n = 0; n < args.n; ++n) {
    const uint16_t* from = args.w + static_cast<size_t>(n) * k;
    for (size_t i = 0; i < k; ++i) w[i] = HalfValue(args.type, from[i]);
    for (int row = 0; row < args.num_rows; ++row) {
      const float* x = rows.data() + static_cast<size_t>(row) * k;
      float sums[kSums] = {};
      size_t i = 0;
      for (; i + kSums <= k; i += kSums) {
        for (size_t s = 0; s < kSums; ++s) sums[s] += x[i + s] * w[i + s];
      }
      for (; i < k; ++i) sums[i % kSums] += x[i] * w[i];
      for (size_t width = kSums / 2; width > 0; width /= 2) {
        for (size_t s = 0; s < width; ++s) sums[s] += sums[s + width];
      }
      float* out = args.out + row * args.out_stride + n;
      *out = args.add ? *out + sums[0] : sums[0];
    }
  }
}

using QuantizedPanelFn = void (*)(HostBlock&, const QuantizedGemmArgs&, int,
                                  int, QuantizedShared&);
QuantizedPanelFn PanelFnOf(WeightType type) {
  switch (type) {
    case WeightType::kQ4_0:
      return QuantizedGemmPanel<WeightType::kQ4_0, HostBlock>;
    case WeightType::kQ4_1:
      return QuantizedGemmPanel<WeightType::kQ4_1, HostBlock>;
    case WeightType::kQ5_0:
      return QuantizedGemmPanel<WeightType::kQ5_0, HostBlock>;
    case WeightType::kQ5_1:
      return QuantizedGemmPanel<WeightType::kQ5_1, HostBlock>;
    case WeightType::kQ8_0:
      return QuantizedGemmPanel<WeightType::kQ8_0, HostBlock>;
    case WeightType::kQ4_K:
      return QuantizedGemmPanel<WeightType::kQ4_K, HostBlock>;
    case WeightType::kQ5_K:
      return QuantizedGemmPanel<WeightType::kQ5_K, HostBlock>;
    case WeightType::kQ6_K:
      return QuantizedGemmPanel<WeightType::kQ6_K, HostBlock>;
    case WeightType::kBf16:
      break;
  }
  std::abort();  // no such matrix
}

class HostOps final : public DeviceOps {
 public:
  explicit HostOps(const HostOpsOptions& options)
      : options_(options), random_(options.seed) {}
  ~HostOps() override {
    for (auto& [p, bytes] : allocated_) std::free(p);
  }

  DeviceInfo info() const override {
    DeviceInfo info;
    std::strcpy(info.name, "host emulation");
    info.has_fused_remat = options_.fused_remat;
    info.has_quantized_gemm = options_.quantized_gemm;
    info.total_bytes =
        options_.memory_bytes > 0 ? options_.memory_bytes : size_t{1} << 40;
    std::lock_guard<std::mutex> lock(mu_);
    info.free_bytes = info.total_bytes - device_bytes_;
    return info;
  }
  const char* error() const override { return nullptr; }

  void* Allocate(size_t bytes) override { return Take(bytes, true); }
  void Free(void* p) override { Give(p, true); }
  void* AllocatePinned(size_t bytes) override { return Take(bytes, false); }
  void FreePinned(void* p) override { Give(p, false); }

  void CopyToDevice(StreamId stream, void* to, const void* from,
                    size_t bytes) override {
    if (stream == StreamId::kCopy && options_.copied_bytes != nullptr) {
      *options_.copied_bytes += static_cast<int64_t>(bytes);
    }
    Enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  }
  void CopyToHost(StreamId stream, void* to, const void* from,
                  size_t bytes) override {
    Enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  }
  void Clear(StreamId stream, void* p, size_t bytes) override {
    Enqueue(stream, [=] { std::memset(p, 0, bytes); });
  }

  void Record(StreamId stream, int event) override {
    const int mark = ++recorded_[At(event)];
    Enqueue(stream, [this, event, mark] { reached_[At(event)] = mark; });
  }
  void Wait(StreamId stream, int event) override {
    Work work;
    work.event = event;
    work.mark = recorded_[At(event)];
    queue(stream).push_back(std::move(work));
  }
  void WaitForEvent(int event) override {
    const int mark = recorded_[At(event)];
    while (reached_[At(event)] < mark) RunSomething();
  }
  void Synchronize(StreamId stream) override {
    while (!queue(stream).empty()) RunSomething();
  }

  void Gemm(const GemmArgs& args) override {
    Compute([args] { RunGemm(args); });
  }
  void QuantizedGemm(const QuantizedGemmArgs& args) override {
    const int tiles = NumRowTiles(args.num_rows);
    const QuantizedPanelFn panel = PanelFnOf(args.w.type);
    Rows(tiles * NumColumnPanels(args.n),
         [args, tiles, panel](HostBlock& block, int i) {
           const auto shared = std::make_unique<QuantizedShared>();
           std::memset(shared.get(), kPoison, sizeof(QuantizedShared));
           panel(block, args, i % tiles, i / tiles, *shared);
         });
  }
  void Unpack(const UnpackArgs& args) override {
    Rows(args.num_rows, [args](HostBlock& block, int row) {
      UnpackMatrixRow(block, args, row);
    });
  }
  void Embed(const EmbedArgs& args) override {
    Rows(args.num_rows,
         [args](HostBlock& block, int row) { EmbedRow(block, args, row); });
  }
  void RmsNorm(const RmsNormArgs& args) override {
    Rows(args.num_rows, [args](HostBlock& block, int row) {
      float shared[kThreads];
      RmsNormRow(block, args, row, shared);
    });
  }
  void StoreKv(const StoreKvArgs& args) override {
    Rows(args.num_rows,
         [args](HostBlock& block, int row) { StoreKvRow(block, args, row); });
  }
  void Attend(const AttentionArgs& args) override {
    const int heads = args.layout.n_kv_heads;
    Rows(args.num_tasks * heads, [args, heads](HostBlock& block, int i) {
      std::vector<uint16_t> shared(
          static_cast<size_t>(AttentionSharedHalves(args.layout.head_dim)));
      ForAttentionDim(args.layout.head_dim, [&](auto max_dim) {
        AttendChunk<decltype(max_dim)::value>(block, args, i / heads, i % heads,
                                              shared.data());
      });
    });
    Rows(args.num_tasks * heads, [args, heads](HostBlock& block, int i) {
      MergeChunks(block, args, i / heads, i % heads);
    });
  }
  void SiluMul(const SiluMulArgs& args) override {
    Rows(args.num_rows,
         [args](HostBlock& block, int row) { SiluMulRow(block, args, row); });
  }
  void DecodeTokens(const TokenMatrix& m, const DecodeArgs& args) override {
    const int pieces = NumPieces(m.num_channels);
    Rows(args.num_blocks * pieces, [m, args, pieces](HostBlock& block, int i) {
      std::vector<float> shared(kPieceFloats);
      DecodeTokenPiece(block, m, args, i / pieces, i % pieces, shared.data());
    });
  }
  void DecodeChannels(const ChannelMatrix& m, const DecodeArgs& args) override {
    const int parts = (m.num_channels + kThreads - 1) / kThreads;
    Rows(args.num_blocks * kOctets * parts,
         [m, args, parts](HostBlock& block, int i) {
           DecodeChannelPart(block, m, args, i / parts / kOctets,
                             i / parts % kOctets, i % parts);
         });
  }
  void ScaleSums(const ScaleSumsArgs& args) override {
    Rows(args.num_blocks * kBlockTokens,
         [args](HostBlock& block, int row) { ScaleSumsRow(block, args, row); });
  }
  void RoundSums(const RoundSumsArgs& args) override {
    Rows(args.num_blocks * kBlockTokens,
         [args](HostBlock& block, int row) { RoundSumsRow(block, args, row); });
  }
  void FusedRemat(const FusedRematArgs& args) override {
    const int parts = FusedParts(args);
    Rows(args.num_blocks * parts, [args](HostBlock& block, int i) {
      const auto shared = std::make_unique<FusedShared>();
      std::memset(shared.get(), kPoison, sizeof(FusedShared));
      FusedRematPart(block, args, i % args.num_blocks, i / args.num_blocks,
                     *shared);
    });
  }
  void StoreFinal(const StoreFinalArgs& args) override {
    const int heads = args.layout.n_kv_heads;
    Rows(args.num_blocks * heads, [args, heads](HostBlock& block, int i) {
      StoreFinalHead(block, args, i / heads, i % heads);
    });
  }

  void Transpose(const TransposeArgs& args) override {
    const int pieces = NumPieces(args.num_channels);
    Rows(args.num_blocks * pieces, [args, pieces](HostBlock& block, int i) {
      std::vector<float> shared(kPieceFloats);
      TransposePiece(block, args, i / pieces, i % pieces, shared.data());
    });
  }
  void Gather(const GatherArgs& args) override {
    Rows(args.num_blocks * kBlockTokens,
         [args](HostBlock& block, int row) { GatherRow(block, args, row); });
  }
  void ExactProduct(const ExactProductArgs& args) override {
    const int parts = (args.width + kThreads - 1) / kThreads;
    constexpr int kRowParts8 = kBlockTokens / kProductRows;
    Rows(args.num_blocks * parts * kRowParts8,
         [args, parts](HostBlock& block, int i) {
           float shared[kProductRows * kProductDepth];
           ExactProductPart(block, args, i / kRowParts8 / parts,
                            i / kRowParts8 % parts, i % kRowParts8, shared);
         });
  }
  void Predict(const PredictArgs& args) override {
    Rows(args.num_blocks * kBlockTokens, [args](HostBlock& block, int row) {
      float shared[2 * kDotSums];
      PredictRow(block, args, row, shared);
    });
  }
  void Quantize(const QuantizeArgs& args) override {
    const int n = args.num_blocks * args.num_units;
    if (args.fp8) {
      Rows(n, [args](HostBlock& block, int i) {
        float shared[2 * kThreads];
        UnitRanges(block, args, i / args.num_units, i % args.num_units, shared);
      });
    }
    Rows(n, [args](HostBlock& block, int i) {
      std::vector<uint8_t> codes(kMaxTileRows * kThreads);
      QuantizeUnit(block, args, i / args.num_units, i % args.num_units,
                   codes.data());
    });
  }

 private:
  // Work of a stream; without `run`, a wait for a mark of an event.
  struct Work {
    std::function<void()> run;
    int event = 0;
    int mark = 0;
  };

  static size_t At(int i) { return static_cast<size_t>(i); }
  std::deque<Work>& queue(StreamId stream) {
    return queues_[At(static_cast<int>(stream))];
  }

  void Enqueue(StreamId stream, std::function<void()> run) {
    queue(stream).push_back({std::move(run), 0, 0});
  }
  void Compute(std::function<void()> run) {
    Enqueue(StreamId::kCompute, std::move(run));
  }
  // Blocks of threads have no order among them either.
  template <typename Body>
  void Rows(int num_blocks, const Body& body) {
    Compute([this, num_blocks, body] {
      HostBlock block(options_.order);
      for (int i = 0; i < num_blocks; ++i) {
        body(block,
             options_.order == ThreadOrder::kForward ? i : num_blocks - 1 - i);
      }
    });
  }

  // Runs the next piece of work of some stream that can go on.
  void RunSomething() {
    std::array<size_t, kNumStreams> ready{};
    size_t n = 0;
    for (size_t s = 0; s < queues_.size(); ++s) {
      std::deque<Work>& q = queues_[s];
      while (!q.empty() && !q.front().run &&
             reached_[At(q.front().event)] >= q.front().mark) {
        q.pop_front();
      }
      if (!q.empty() && q.front().run) ready[n++] = s;
    }
    if (n == 0) {
      // The caller's loop ends if a wait was all there was.
      for (const auto& q : queues_) {
        if (!q.empty()) std::abort();  // a wait for what nobody will do
      }
      return;
    }
    std::deque<Work>& q = queues_[ready[random_() % n]];
    Work work = std::move(q.front());
    q.pop_front();
    work.run();
  }

  void* Take(size_t bytes, bool device) {
    const size_t size =
        (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
    std::lock_guard<std::mutex> lock(mu_);
    if (device && options_.memory_bytes > 0 &&
        device_bytes_ + size > options_.memory_bytes) {
      return nullptr;
    }
    void* p = std::aligned_alloc(kAlignment, size);
    if (p == nullptr) return nullptr;
    std::memset(p, kPoison, size);
    allocated_[p] = size;
    if (device) device_bytes_ += size;
    return p;
  }
  void Give(void* p, bool device) {
    if (p == nullptr) return;
    if (device) {
      for (int s = 0; s < kNumStreams; ++s) {
        Synchronize(static_cast<StreamId>(s));
      }
    }
    std::lock_guard<std::mutex> lock(mu_);
    const auto it = allocated_.find(p);
    if (it == allocated_.end()) std::abort();
    std::memset(p, kPoison, it->second);
    if (device) device_bytes_ -= it->second;
    allocated_.erase(it);
    std::free(p);
  }

  const HostOpsOptions options_;
  std::mt19937 random_;
  std::array<std::deque<Work>, kNumStreams> queues_;
  std::array<int, kNumEvents> recorded_{}, reached_{};
  mutable std::mutex mu_;
  std::map<void*, size_t> allocated_;
  size_t device_bytes_ = 0;
};

}  // namespace

std::unique_ptr<DeviceOps> MakeHostOps(const HostOpsOptions& options) {
  return std::make_unique<HostOps>(options);
}

}  // namespace xcache::cuda
