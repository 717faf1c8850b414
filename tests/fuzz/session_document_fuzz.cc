// Documents of sessions, from whoever calls ImportSession. What is taken must
// be within its limits, and written again must read as the same.
#include <string>
#include <string_view>
#include <vector>

#include "cachestore/sessions/session_record.h"
#include "server/core/sessions/document.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto record = xcache::ParseSessionDocument(bytes);
  if (!record.ok()) {
    XCACHE_FUZZ_CHECK(!record.status().message().empty());
    return 0;
  }
  XCACHE_FUZZ_CHECK(record->messages.size() <= xcache::kMaxDocumentMessages);
  XCACHE_FUZZ_CHECK(record->tokens.size() <= xcache::kMaxDocumentTokens);
  XCACHE_FUZZ_CHECK(record->ttl_ms >= 0 && record->create_ms >= 0);
  uint32_t end = 0;
  for (const xcache::SessionMessage& message : record->messages) {
    XCACHE_FUZZ_CHECK(message.token_begin == end || record->tokens.empty());
    XCACHE_FUZZ_CHECK(message.token_end >= message.token_begin);
    end = message.token_end;
  }
  XCACHE_FUZZ_CHECK(end == record->tokens.size());
  const bool with_tokens = !record->tokens.empty();
  const auto again = xcache::ParseSessionDocument(
      xcache::WriteSessionDocument(*record, with_tokens));
  XCACHE_FUZZ_CHECK(again.ok());
  XCACHE_FUZZ_CHECK(*again == *record);
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  xcache::SessionRecord record;
  record.id = "customer-17";
  record.title = "Orders";
  record.create_ms = 1'700'000'000'000;
  record.ttl_ms = 604'800'000;
  record.codec = "xquant-gqa:bits=4";
  record.turn = 1;
  record.tokens = {1, 2, 3, 4, 5, 6};
  record.messages = {
      {.role = 0, .content = "Be brief.", .token_end = 2},
      {.role = 1,
       .content = "Gr\xC3\xBC\xC3\x9F dich \"x\"\n",
       .token_begin = 2,
       .token_end = 3},
      {.role = 2, .content = "Hello", .token_begin = 3, .token_end = 6}};
  record.settings = {{"remat", "step"}, {"retokenized", "yes"}};
  return {xcache::WriteSessionDocument(record, true),
          xcache::WriteSessionDocument(record, false),
          R"({"format":"xcache-session","version":1,"messages":[]})",
          R"({"format":"xcache-session","version":2,"messages":[]})",
          R"({"format":"xcache-session","version":1,"messages":[)"
          R"({"role":"user","content":"\ud83d\ude00","tokens":[0,-1,1e9]}]})",
          std::string(2000, '[')};
}
