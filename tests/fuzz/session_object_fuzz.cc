// Sessions of the shared store, from bytes of any kind: objects, and what a
// copy says of its version there. What is taken means exactly these bytes.
#include <string>

#include "cachestore/sessions/session_object.h"
#include "engine/base/coding.h"
#include "engine/base/crc32c.h"
#include "tests/fuzz/fuzz.h"

namespace {

void Check(const std::string& bytes) {
  const auto object = xcache::DecodeSessionObject(bytes);
  if (object.ok()) {
    XCACHE_FUZZ_CHECK(xcache::EncodeSessionObject(*object) == bytes);
  } else {
    XCACHE_FUZZ_CHECK(absl::IsDataLoss(object.status()) ||
                      absl::IsFailedPrecondition(object.status()));
  }
  if (const auto version = xcache::DecodeSessionVersion(bytes)) {
    XCACHE_FUZZ_CHECK(xcache::EncodeSessionVersion(*version) == bytes);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  Check(bytes);
  if (bytes.size() < 4) return 0;
  // Behind a checksum that is right.
  bytes.resize(bytes.size() - 4);
  xcache::FieldWriter(bytes).Int(xcache::Crc32c(bytes));
  Check(bytes);
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  using namespace xcache;
  SessionObject object;
  object.revision.fill(7);
  object.ancestry.resize(3);
  object.manifest = "a manifest";
  SessionObject mark = object;
  mark.is_deleted = true;
  mark.manifest.clear();
  return {EncodeSessionObject(object), EncodeSessionObject(mark),
          EncodeSessionVersion({.etag = "etag",
                                .is_ahead = true,
                                .revision = object.revision,
                                .ancestry = object.ancestry})};
}
