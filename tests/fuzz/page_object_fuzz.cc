// Objects of the shared store of any bytes: what is taken is what WrapPage
// would have written.
#include <string>

#include "cachestore/shared/page_object.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace xcache;
  const std::string object(reinterpret_cast<const char*>(data), size);
  const auto envelope = ReadPageEnvelope(object);
  XCACHE_FUZZ_CHECK(envelope.ok() || absl::IsDataLoss(envelope.status()));
  if (envelope.ok()) {
    XCACHE_FUZZ_CHECK(WrapPage(*envelope, std::string_view(object).substr(
                                              kPageEnvelopeBytes)) == object);
  }
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  using namespace xcache;
  PageEnvelope envelope;
  envelope.key.fill(7);
  envelope.parent.fill(9);
  envelope.put_unix_ms = 1'764'000'000'000;
  return {WrapPage(envelope, ""), WrapPage(envelope, "a page"),
          WrapPage({}, std::string(1000, 'x'))};
}
