// The records of the store, from bytes on disk: session manifests and their
// heads, page entries and values. What is taken for a record must mean exactly
// these bytes.
#include <string_view>

#include "cachestore/rocksdb/page_records.h"
#include "cachestore/sessions/session_record.h"
#include "engine/base/coding.h"
#include "engine/base/crc32c.h"
#include "tests/fuzz/fuzz.h"

namespace {

using xcache::Crc32c;
using xcache::FieldWriter;
using xcache::PageKey;
using xcache::SessionRecord;

std::string WithCrc(std::string_view bytes, uint32_t before) {
  std::string out(bytes);
  if (out.size() < 4) return out;
  out.resize(out.size() - 4);
  FieldWriter(out).Int(Crc32c(out, before));
  return out;
}

void CheckManifest(std::string_view bytes) {
  const auto record = xcache::DecodeSessionRecord(bytes);
  // Of the older version, what it says is written as today's.
  constexpr size_t kVersionAt = 4;
  if (record.ok() && bytes[kVersionAt] == 1) {
    const std::string today = xcache::EncodeSessionRecord(*record);
    XCACHE_FUZZ_CHECK(*xcache::DecodeSessionRecord(today) == *record);
  } else if (record.ok()) {
    XCACHE_FUZZ_CHECK(xcache::EncodeSessionRecord(*record) == bytes);
    const auto head = xcache::DecodeSessionHead(xcache::HeadOf(bytes));
    XCACHE_FUZZ_CHECK(head.ok() && head->num_tokens == record->tokens.size());
  } else {
    XCACHE_FUZZ_CHECK(!record.status().message().empty());
  }
}

void CheckPage(const PageKey& page, std::string_view bytes) {
  const auto entry = xcache::DecodePageEntry(page, bytes);
  if (entry.ok()) {
    XCACHE_FUZZ_CHECK(xcache::EncodePageEntry(page, *entry) == bytes);
  }
  const auto value = xcache::CheckPageValue(page, bytes);
  if (value.ok()) {
    XCACHE_FUZZ_CHECK(bytes.substr(value->num_bytes) ==
                      xcache::EncodePageEntry(page, *value));
  }
}

// A head may have anything behind it; what it says of itself holds.
void CheckHead(std::string_view bytes) {
  const auto head = xcache::DecodeSessionHead(bytes);
  if (!head.ok()) return;
  const auto again = xcache::DecodeSessionHead(xcache::HeadOf(bytes));
  XCACHE_FUZZ_CHECK(again.ok() && again->id == head->id);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const PageKey page = xcache::Sha256Of("page");
  CheckManifest(bytes);
  CheckPage(page, bytes);
  CheckHead(bytes);
  // Behind checksums that are right, so that mutations reach what they guard.
  CheckManifest(WithCrc(bytes, 0));
  CheckPage(page, WithCrc(bytes, Crc32c(xcache::KeyBytes(page))));
  const auto name = xcache::ParseSessionKey(bytes);
  if (name) {
    XCACHE_FUZZ_CHECK(xcache::SessionKeyBytes(name->tenant, name->id) == bytes);
  }
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  SessionRecord record;
  record.tenant = "tenant";
  record.id = "id";
  record.title = "title";
  record.codec = "xquant-gqa:bits=4";
  record.numerics_id = "cpu";
  record.expire_ms = 1;
  record.turn = 1;
  record.tokens = {1, 2, 3};
  record.messages = {{1, "question", 0, 2}, {2, "answer", 2, 3}};
  record.page_keys = {xcache::Sha256Of("page")};
  record.page_bytes = 5;
  record.settings = {{"name", "value"}};
  const PageKey key = xcache::Sha256Of("page");
  const std::string content = "a page's bytes";
  const std::string entry = xcache::EncodePageEntry(
      key, {.num_bytes = static_cast<uint32_t>(content.size()),
            .crc = Crc32c(content),
            .put_us = 3});
  return {xcache::EncodeSessionRecord(record),
          xcache::EncodeSessionRecord({}),
          std::string(xcache::HeadOf(xcache::EncodeSessionRecord(record))),
          entry,
          content + entry,
          xcache::SessionKeyBytes("tenant", "id")};
}
