// Payload bytes to K and V: no payload may crash a codec. The first byte picks
// the codec; the rest is cut or filled up to the payload's size, where payloads
// have one.
#include <array>
#include <cmath>

#include "tests/fuzz/fuzz.h"
#include "tests/unit/engine/xcache/codec_test_util.h"

namespace {

constexpr std::array kSpecs = {
    "kv-fp16",
    "xquant:bits=3",
    "xquant:axis=channel,scales=fp16",
    "xquant-gqa:bits=2",
    "xquant-gqa:bits=8,group=16",
    "xquant-cl:bits=3,base_layers=1",
    "xquant-cl:axis=channel,scales=fp16,x=residual",
    "xquant-cl-gqa:bits=2,base_layers=1",
    "xquant-cl-gqa:axis=token,group=16,x=unit",
    "kivi:bits=2",
    "xquant-tc:rate=high",
    "xquant-tc:rate=small",
};

const std::vector<xcache::TokenId>& Ids() {
  static const std::vector<xcache::TokenId> ids(xcache::kBlockTokens, 7);
  return ids;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const xcache::FakeModel model({3, 8, 4});
  if (size == 0) return 0;
  const auto codec =
      model.Make(kSpecs[data[0] % kSpecs.size()], xcache::Isa::kRef);
  XCACHE_FUZZ_CHECK(codec.ok());
  std::vector<uint8_t> payload(data + 1, data + size);
  if (!(*codec)->variable_size()) payload.resize((*codec)->payload_bytes());
  const auto restored =
      xcache::Restore(**codec, model.shape(), {0, Ids()}, payload);
  if (!restored.ok()) {
    XCACHE_FUZZ_CHECK(absl::IsInvalidArgument(restored.status()));
  }
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  const xcache::FakeModel model({3, 8, 4});
  const xcache::BlockRows rows(model, 1);
  std::vector<std::string> seeds;
  for (size_t i = 0; i < kSpecs.size(); ++i) {
    const auto codec = model.Make(kSpecs[i], xcache::Isa::kRef);
    std::vector<uint8_t> payload((*codec)->payload_bytes());
    XCACHE_FUZZ_CHECK(
        (*codec)
            ->Seal([&](int layer) { return rows(layer); }, {0, Ids()}, payload)
            .ok());
    payload.resize((*codec)->used_bytes(payload));
    std::string seed(1, static_cast<char>(i));
    seed.append(payload.begin(), payload.end());
    seeds.push_back(std::move(seed));
  }
  return seeds;
}
