// Each codec that has kernels against the CPU's codec, payload by payload and
// layer by layer: the same bytes sealed, K and V within what the codec's file
// states, and the same payloads refused. One suite over all codecs, which share
// what surrounds a block on either side: hence over 500 lines.
#include "engine/device/codecs/codec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/thread_pool.h"
#include "engine/common/codec_loader.h"
#include "engine/xcache/block_coder.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/engine/device/ops_fixture.h"

namespace xcache::cuda {
namespace {

// Of block 0, and of a later one.
constexpr std::array kFirstRows = {kSinkTokens, 0};
constexpr size_t kBlocks = kFirstRows.size();

// The rows of a block that a codec may ask for; the sinks' are not numbers.
struct LiveBlock {
  std::vector<float> unit_x, rms, k_pre, v_pre;  // [layers, 64, width]
};

class DeviceCodecTest : public DeviceOpsTest {
 protected:
  void SetUp() override {
    DeviceOpsTest::SetUp();
    if (ops_ == nullptr) return;
    for (const bool gqa : {true, false}) {
      testing::TinyModelOptions options;
      options.num_layers = 6;
      options.d_model = gqa ? 160 : 96;
      options.n_heads = gqa ? 6 : 3;
      options.n_kv_heads = 3;
      options.matrix_type = GgufType::kF16;
      Subject& subject = subjects_.emplace_back();
      subject.model = testing::MakeTinyModel(options);
      subject.loader =
          std::make_unique<CodecLoader>(subject.model, "", *ChooseIsa(""));
    }
  }

  struct Subject {
    std::shared_ptr<const Model> model;
    std::unique_ptr<CodecLoader> loader;  // makes profiles once
  };
  struct Opened {
    LoadedCodec cpu;
    std::unique_ptr<const DeviceCodec> device;
    const HyperParams* h = nullptr;
  };
  Opened Open(const Subject& subject, const std::string& spec) {
    Opened out;
    out.h = &subject.model->hparams();
    auto loaded = subject.loader->Load(spec, {});
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    out.cpu = *std::move(loaded);
    DeviceCodecSources sources;
    sources.codec = out.cpu.codec.get();
    sources.profile = out.cpu.profile.get();
    sources.model = subject.model.get();
    sources.ops = ops_.get();
    sources.pool = &pool_;
    // The form whose K and V can be seen; fused_remat_test holds the other to
    // it.
    sources.remat_kernel = RematKernel::kTwoStep;
    auto device = MakeDeviceCodec(sources);
    EXPECT_TRUE(device.ok()) << device.status();
    out.device = *std::move(device);
    EXPECT_NE(out.device, nullptr) << spec << " has no kernels";
    return out;
  }

  // Rows as a model's are: the residual stream grows from layer to layer, and
  // one channel is an outlier.
  LiveBlock MakeRows(const HyperParams& h, int first_row) {
    const auto d = static_cast<size_t>(h.d_model);
    const auto layers = static_cast<size_t>(h.num_layers);
    LiveBlock out;
    const size_t kv = layers * kBlockTokens * static_cast<size_t>(h.kv_dim());
    out.k_pre = Random(kv);
    out.v_pre = Random(kv, 0.5f);
    out.unit_x.resize(layers * kBlockTokens * d);
    out.rms.resize(layers * kBlockTokens);
    std::vector<float> x = Random(kBlockTokens * d);
    for (size_t layer = 0; layer < layers; ++layer) {
      const std::vector<float> step = Random(x.size(), 0.4f);
      for (size_t i = 0; i < x.size(); ++i) {
        x[i] += i % d == 5 ? 3.0f : step[i];
      }
      for (size_t row = 0; row < kBlockTokens; ++row) {
        float power = 0.0f;
        for (size_t i = 0; i < d; ++i) power += x[row * d + i] * x[row * d + i];
        const size_t at = layer * kBlockTokens + row;
        out.rms[at] = std::sqrt(power / static_cast<float>(d));
        for (size_t i = 0; i < d; ++i) {
          out.unit_x[at * d + i] = x[row * d + i] / out.rms[at];
        }
        // What predictions make little of: nothing at first, turned around in
        // each layer, growing beyond the largest scale, an rms that jumps.
        float factor = 1.0f;
        if (row == 10 && layer < 2) factor = 0.0f;
        if (row == 11 && layer % 2 == 1) factor = -1.0f;
        if (row == 12 && layer < 3) factor = 0.1f;
        for (size_t i = 0; i < d; ++i) out.unit_x[at * d + i] *= factor;
        if (row == 13 && layer % 2 == 1) out.rms[at] *= 1e-3f;
      }
    }
    for (std::vector<float>* rows :
         {&out.unit_x, &out.rms, &out.k_pre, &out.v_pre}) {
      const size_t layer_size = rows->size() / layers;
      const size_t sinks =
          layer_size / kBlockTokens * static_cast<size_t>(first_row);
      for (size_t layer = 0; layer < layers; ++layer) {
        std::fill_n(rows->begin() + static_cast<int64_t>(layer * layer_size),
                    sinks, std::numeric_limits<float>::quiet_NaN());
      }
    }
    return out;
  }

  std::vector<uint8_t> SealOnCpu(const Opened& codec, const LiveBlock& block,
                                 int first_row) {
    std::vector<uint8_t> payload(codec.cpu.codec->payload_bytes());
    const auto layer_of = [&](const std::vector<float>& rows, int layer) {
      return rows.data() + rows.size() /
                               static_cast<size_t>(codec.h->num_layers) *
                               static_cast<size_t>(layer);
    };
    const unsigned asked = codec.cpu.codec->live_rows();
    const absl::Status status = codec.cpu.codec->Seal(
        [&](int layer) {
          LayerRows in;
          if (asked & kLiveUnitX) in.unit_x = layer_of(block.unit_x, layer);
          if (asked & kLiveRms) in.rms = layer_of(block.rms, layer);
          if (asked & kLiveKvPre) {
            in.k_pre = layer_of(block.k_pre, layer);
            in.v_pre = layer_of(block.v_pre, layer);
          }
          return in;
        },
        first_row, payload);
    EXPECT_TRUE(status.ok()) << status;
    return payload;
  }

  // The payloads of all blocks, and what was found not to be finite.
  std::vector<std::vector<uint8_t>> SealOnDevice(
      const Opened& codec, const std::vector<LiveBlock>& blocks,
      std::vector<int32_t>* invalid) {
    const size_t bytes = codec.cpu.codec->payload_bytes();
    Array<uint8_t> payloads(
        *ops_, std::vector<uint8_t>(kBlocks * bytes, uint8_t{0x5a}));
    const auto table = [&](std::vector<float> LiveBlock::*part) {
      std::vector<float> all;
      for (const LiveBlock& block : blocks) {
        all.insert(all.end(), (block.*part).begin(), (block.*part).end());
      }
      rows_.push_back(std::make_unique<Array<float>>(*ops_, all));
      std::vector<SealSource> out(kBlocks);
      for (size_t b = 0; b < kBlocks; ++b) {
        out[b].rows = rows_.back()->get() + b * (all.size() / kBlocks);
        out[b].payload = payloads.get() + b * bytes;
        out[b].first_row = kFirstRows[b];
      }
      return out;
    };
    std::vector<const uint8_t*> payload_of;
    for (size_t b = 0; b < kBlocks; ++b) {
      payload_of.push_back(payloads.get() + b * bytes);
    }
    Array<const uint8_t*> payload_table(*ops_, payload_of);
    Array<SealSource> unit_x(*ops_, table(&LiveBlock::unit_x)),
        rms(*ops_, table(&LiveBlock::rms)),
        k_pre(*ops_, table(&LiveBlock::k_pre)),
        v_pre(*ops_, table(&LiveBlock::v_pre));
    Array<float> rows(
        *ops_, std::vector<float>(kBlocks * codec.device->seal_floats(),
                                  std::numeric_limits<float>::quiet_NaN()));
    Array<float> ranges(
        *ops_, std::vector<float>(2 * kBlocks * codec.device->seal_units()));
    Array<int32_t> flags(*ops_, std::vector<int32_t>(kBlocks));
    SealBatch batch;
    batch.num_blocks = kBlocks;
    batch.unit_x = unit_x.get();
    batch.rms = rms.get();
    batch.payloads = payload_table.get();
    batch.k_pre = k_pre.get();
    batch.v_pre = v_pre.get();
    batch.invalid = flags.get();
    for (int layer = 0; layer < codec.h->num_layers; ++layer) {
      codec.device->Seal(*ops_, layer, batch, {rows.get(), ranges.get()});
    }
    const std::vector<uint8_t> all = payloads.ToHost();
    std::vector<std::vector<uint8_t>> out;
    for (size_t b = 0; b < kBlocks; ++b) {
      const auto begin = all.begin() + static_cast<int64_t>(b * bytes);
      out.emplace_back(begin, begin + static_cast<int64_t>(bytes));
    }
    rows_.clear();
    *invalid = flags.ToHost();
    return out;
  }

  struct LayerOut {
    std::vector<float> k, v;  // [64, kv_dim]
    std::vector<float> sums;  // [64, sums_width()]
  };
  // For each block and layer; `invalid` for each block.
  std::vector<std::vector<LayerOut>> RematOnDevice(
      const Opened& codec, const std::vector<std::vector<uint8_t>>& payloads,
      std::vector<int32_t>* invalid) {
    const auto kv_dim = static_cast<size_t>(codec.h->kv_dim());
    std::vector<std::unique_ptr<Array<uint8_t>>> copies;
    std::vector<const uint8_t*> pointers;
    std::vector<BlockTarget> targets(kBlocks);
    for (size_t b = 0; b < kBlocks; ++b) {
      copies.push_back(std::make_unique<Array<uint8_t>>(*ops_, payloads[b]));
      pointers.push_back(copies.back()->get());
      targets[b].first_row = kFirstRows[b];
    }
    Array<const uint8_t*> table(*ops_, pointers);
    Array<BlockTarget> device_targets(*ops_, targets);
    Array<int32_t> flags(*ops_, std::vector<int32_t>(kBlocks));
    constexpr size_t kRows = kBlocks * kBlockTokens;
    // Not a number, and at least one.
    const auto latent_width = static_cast<size_t>(codec.device->latent_width());
    const auto sums_width = static_cast<size_t>(codec.device->sums_width());
    Array<uint16_t> latent(
        *ops_, std::vector<uint16_t>(1 + kRows * latent_width, 0x7e00));
    Array<float> sums(
        *ops_, std::vector<float>(1 + kRows * sums_width,
                                  std::numeric_limits<float>::quiet_NaN()));
    Array<float> kv(*ops_, std::vector<float>(kRows * 2 * kv_dim));
    RematBatch batch;
    batch.num_blocks = kBlocks;
    batch.payloads = table.get();
    batch.targets = device_targets.get();
    batch.invalid = flags.get();
    std::vector<std::vector<LayerOut>> out(kBlocks);
    for (int layer = 0; layer < codec.h->num_layers; ++layer) {
      const PreRows rows = codec.device->Remat(
          *ops_, layer, batch, {latent.get(), kv.get(), sums.get()});
      EXPECT_EQ(rows.k, kv.get());
      EXPECT_EQ(rows.v, kv.get() + kv_dim);
      EXPECT_EQ(rows.stride, static_cast<int64_t>(2 * kv_dim));
      const std::vector<float> all = kv.ToHost();
      const std::vector<float> all_sums = sums.ToHost();
      for (size_t b = 0; b < kBlocks; ++b) {
        LayerOut of;
        for (size_t row = 0; row < kBlockTokens; ++row) {
          const float* k = all.data() + (b * kBlockTokens + row) * 2 * kv_dim;
          of.k.insert(of.k.end(), k, k + kv_dim);
          of.v.insert(of.v.end(), k + kv_dim, k + 2 * kv_dim);
        }
        const float* first = all_sums.data() + b * kBlockTokens * sums_width;
        of.sums.assign(first, first + kBlockTokens * sums_width);
        out[b].push_back(std::move(of));
      }
    }
    *invalid = flags.ToHost();
    return out;
  }

  // Root mean square of differences over that of what is expected, of the rows
  // that count.
  static double RelativeError(const std::vector<float>& found,
                              const float* expected, int first_row) {
    double error = 0.0, power = 0.0;
    const size_t begin =
        found.size() / kBlockTokens * static_cast<size_t>(first_row);
    for (size_t i = begin; i < found.size(); ++i) {
      const auto x = static_cast<double>(expected[i]);
      const double difference = static_cast<double>(found[i]) - x;
      error += difference * difference;
      power += x * x;
    }
    return std::sqrt(error / power);
  }

  // Both directions of one spec. K's and V's errors must not exceed these.
  void CheckAgainstCpu(const std::string& spec, double k_tolerance,
                       double v_tolerance) {
    for (const Subject& subject : subjects_) {
      const Opened codec = Open(subject, spec);
      ASSERT_NE(codec.device, nullptr);
      std::vector<LiveBlock> blocks;
      std::vector<std::vector<uint8_t>> payloads;
      for (int first_row : kFirstRows) {
        blocks.push_back(MakeRows(*codec.h, first_row));
        payloads.push_back(SealOnCpu(codec, blocks.back(), first_row));
      }
      std::vector<int32_t> invalid;
      const auto sealed = SealOnDevice(codec, blocks, &invalid);
      EXPECT_EQ(invalid, std::vector<int32_t>(kBlocks)) << spec;
      for (size_t b = 0; b < kBlocks; ++b) {
        EXPECT_TRUE(sealed[b] == payloads[b]) << spec << ", block " << b;
      }
      const auto found = RematOnDevice(codec, payloads, &invalid);
      EXPECT_EQ(invalid, std::vector<int32_t>(kBlocks)) << spec;
      for (size_t b = 0; b < kBlocks; ++b) {
        const absl::Status status = codec.cpu.codec->Remat(
            payloads[b], kFirstRows[b], [&](int layer, const RematRows& rows) {
              const LayerOut& of = found[b][static_cast<size_t>(layer)];
              EXPECT_LE(RelativeError(of.k, rows.k_pre, kFirstRows[b]),
                        k_tolerance)
                  << spec << ", block " << b << ", layer " << layer;
              EXPECT_LE(RelativeError(of.v, rows.v_pre, kFirstRows[b]),
                        v_tolerance)
                  << spec << ", block " << b << ", layer " << layer;
            });
        EXPECT_TRUE(status.ok()) << status;
      }
    }
  }

  // Scales that are none anywhere in the payload: refused where the CPU's codec
  // refuses them, and only there.
  void CheckRefusals(const std::string& spec) {
    const Opened codec = Open(subjects_[0], spec);
    ASSERT_NE(codec.device, nullptr);
    std::vector<std::vector<uint8_t>> good;
    for (int first_row : kFirstRows) {
      good.push_back(
          SealOnCpu(codec, MakeRows(*codec.h, first_row), first_row));
    }
    int refused = 0;
    for (int trial = 0; trial < 5; ++trial) {
      auto payloads = good;
      for (std::vector<uint8_t>& bad : payloads) {
        // Not a number as binary16 and, each byte, as E4M3. The very beginning
        // is a scale; elsewhere it may be codes.
        const size_t at = trial == 0 ? 0 : rng_() % (bad.size() / 2) * 2;
        bad[at] = 0xff;
        bad[at + 1] = 0x7f;
      }
      std::vector<int32_t> invalid;
      RematOnDevice(codec, payloads, &invalid);
      for (size_t b = 0; b < kBlocks; ++b) {
        const bool ok =
            codec.cpu.codec
                ->Remat(payloads[b], kFirstRows[b],
                        [](int /*layer*/, const RematRows& /*rows*/) {})
                .ok();
        EXPECT_EQ(invalid[b] == 0, ok) << spec << ", trial " << trial;
        refused += ok ? 0 : 1;
      }
    }
    EXPECT_GE(refused, 2) << spec;
  }

  // A value that is not finite, in any layer's rows but the sinks'.
  void CheckWhatIsNotFinite(const std::string& spec) {
    const Opened codec = Open(subjects_[0], spec);
    ASSERT_NE(codec.device, nullptr);
    const unsigned asked = codec.cpu.codec->live_rows();
    for (const auto& [kind, part] :
         {std::pair{kLiveUnitX, &LiveBlock::unit_x},
          std::pair{kLiveKvPre, &LiveBlock::k_pre},
          std::pair{kLiveKvPre, &LiveBlock::v_pre}}) {
      if ((asked & kind) == 0) continue;
      for (size_t bad = 0; bad < kBlocks; ++bad) {
        std::vector<LiveBlock> blocks;
        for (int first_row : kFirstRows) {
          blocks.push_back(MakeRows(*codec.h, first_row));
        }
        // The last element of the second layer.
        std::vector<float>& rows = blocks[bad].*part;
        rows[rows.size() / static_cast<size_t>(codec.h->num_layers) * 2 - 1] =
            std::numeric_limits<float>::infinity();
        std::vector<int32_t> invalid;
        SealOnDevice(codec, blocks, &invalid);
        for (size_t b = 0; b < kBlocks; ++b) {
          EXPECT_EQ(invalid[b] != 0, b == bad) << spec << ", block " << b;
        }
      }
    }
  }

  std::vector<Subject> subjects_;
  ThreadPool pool_{1};
  std::vector<std::unique_ptr<Array<float>>> rows_;
};

INSTANTIATE_TEST_SUITE_P(Devices, DeviceCodecTest,
                         ::testing::ValuesIn(testing::TestDevices()),
                         [](const auto& param) { return param.param.name; });

// One rounding more than on the CPU, to 11 bits: at most 2^-11 of each value,
// and less by chance. Exact: to the bit.
constexpr double kRounded = 0x1p-11;
constexpr double kExact = 0.0;

TEST_P(DeviceCodecTest, KiviIsTheCpusBothWays) {
  for (const char* options :
       {"", ":bits=2,group=16", ":bits=3,group=32", ":bits=8,group=128",
        ":preset=plain", ":rotate=off,scales=fp16,bits=2",
        ":clip=minmax,group=128"}) {
    CheckAgainstCpu(std::string("kivi") + options, kExact, kExact);
  }
}

TEST_P(DeviceCodecTest, XquantIsTheCpusBothWays) {
  for (const char* options :
       {"", ":bits=2,group=16", ":preset=plain", ":axis=channel,rotate=off",
        ":axis=channel,rotate=off,bits=3,group=32,scales=fp16"}) {
    CheckAgainstCpu(std::string("xquant") + options, kRounded, kRounded);
  }
}

// K's basis is rounded too.
TEST_P(DeviceCodecTest, XquantGqaIsTheCpusBothWays) {
  for (const char* options : {"", ":bits=2,group=16", ":preset=plain"}) {
    CheckAgainstCpu(std::string("xquant-gqa") + options, 2 * kRounded, kExact);
  }
}

constexpr std::array kCrossLayerOptions = {
    "",
    ":base_layers=1,bits=2",
    ":base_layers=2,base_bits=8,bits=3,group=16,axis=token",
    ":base_layers=1,axis=channel,rotate=off,group=32",
    ":base_layers=1,x=residual",
    ":base_layers=1,x=unit,scales=fp16,clip=minmax",
    ":preset=plain,base_layers=1"};

TEST_P(DeviceCodecTest, XquantClIsTheCpusBothWays) {
  for (const char* options : kCrossLayerOptions) {
    CheckAgainstCpu(std::string("xquant-cl") + options, kRounded, kRounded);
  }
}

// Differences are rounded on top of X^, in every layer that X^ has come
// through.
TEST_P(DeviceCodecTest, XquantClGqaIsTheCpusBothWays) {
  for (const char* options : kCrossLayerOptions) {
    CheckAgainstCpu(std::string("xquant-cl-gqa") + options, 2 * kRounded,
                    2 * kRounded);
  }
  CheckAgainstCpu("xquant-cl-gqa:alloc=uniform", 2 * kRounded, 2 * kRounded);
}

// Where U = I, X^ itself is a sum of what the CPU's coder decodes, to the bit.
TEST_P(DeviceCodecTest, SumsOfXquantClAreTheCpusBits) {
  const Opened codec =
      Open(subjects_[0], "xquant-cl:base_layers=2,bits=2,base_bits=4,group=32");
  ASSERT_NE(codec.device, nullptr);
  std::vector<std::vector<uint8_t>> payloads;
  for (int first_row : kFirstRows) {
    payloads.push_back(
        SealOnCpu(codec, MakeRows(*codec.h, first_row), first_row));
  }
  std::vector<int32_t> invalid;
  const auto found = RematOnDevice(codec, payloads, &invalid);
  const auto d = static_cast<size_t>(codec.h->d_model);
  QuantOptions quant;
  quant.group = 32;
  for (size_t b = 0; b < kBlocks; ++b) {
    const uint8_t* in = payloads[b].data();
    std::vector<float> x(kBlockTokens * d), difference(x.size());
    for (int layer = 0; layer < codec.h->num_layers; ++layer) {
      const bool base = layer < 2;
      for (size_t e = 0; e < x.size(); ++e) {
        x[e] = base ? 0.0f : x[e] * (static_cast<float>(in[e / d]) / 128.0f);
      }
      if (!base) in += kBlockTokens;
      const BlockCoder coder(
          PerTokenMatrix(codec.h->d_model, quant, base ? 4 : 2, true), quant,
          Isa::kRef);
      ASSERT_TRUE(coder.Decode(in, difference.data()).ok());
      in += coder.bytes();
      for (size_t e = 0; e < x.size(); ++e) x[e] += difference[e];
      EXPECT_TRUE(found[b][static_cast<size_t>(layer)].sums == x)
          << "block " << b << ", layer " << layer;
    }
    EXPECT_EQ(in, payloads[b].data() + payloads[b].size());
  }
}

TEST_P(DeviceCodecTest, ThePayloadsThatTheCpuRefusesAreRefused) {
  for (const char* name : {"kivi", "xquant", "xquant-gqa",
                           "xquant-cl:base_layers=1,", "xquant-cl-gqa"}) {
    for (const char* scales : {"scales=fp8", "scales=fp16"}) {
      const std::string_view of(name);
      CheckRefusals(std::string(of) + (of.back() == ',' ? "" : ":") + scales);
    }
  }
}

TEST_P(DeviceCodecTest, WhatIsNotFiniteIsNotSealed) {
  for (const char* name :
       {"kivi", "xquant", "xquant:axis=channel,rotate=off", "xquant-gqa",
        "xquant-cl", "xquant-cl:base_layers=1",
        "xquant-cl:base_layers=1,axis=channel,rotate=off", "xquant-cl-gqa"}) {
    CheckWhatIsNotFinite(name);
  }
}

}  // namespace
}  // namespace xcache::cuda
