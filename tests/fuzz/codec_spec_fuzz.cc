// Spec strings to codecs: what parses prints as itself, and a codec that is
// made of it takes its own canonical spec.
#include "engine/xcache/codec_impl.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/engine/xcache/codec_test_util.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto spec = xcache::CodecSpec::Parse(text);
  if (!spec.ok()) {
    XCACHE_FUZZ_CHECK(absl::IsInvalidArgument(spec.status()));
    return 0;
  }
  const auto again = xcache::CodecSpec::Parse(spec->ToString());
  XCACHE_FUZZ_CHECK(again.ok() && again->ToString() == spec->ToString());
  if (xcache::FindCodec(spec->name) == nullptr) return 0;
  static const xcache::FakeModel model({1, 4, 2});
  const auto codec = model.Make(text, xcache::Isa::kRef);
  if (!codec.ok()) return 0;
  const std::string canonical = (*codec)->spec().ToString();
  const auto same = model.Make(canonical, xcache::Isa::kRef);
  XCACHE_FUZZ_CHECK(same.ok() && (*same)->spec().ToString() == canonical);
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  return {"kv-fp16", "xquant:axis=channel,bits=3,preset=plain",
          "xquant-gqa:alloc=uniform,bits=2,clip=mse,group=32,rotate=off,"
          "scales=fp8"};
}
