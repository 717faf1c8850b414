// Page bytes to a parsed page: what is accepted is what BeginPage and
// FinishPage would write.
#include <algorithm>
#include <cstring>

#include "engine/xcache/page.h"
#include "tests/fuzz/fuzz.h"

using xcache::BeginPage;
using xcache::FinishPage;
using xcache::PagePayload;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto check = [](std::string_view page) {
    const auto view = xcache::ParsePage(page);
    if (!view.ok()) {
      XCACHE_FUZZ_CHECK(absl::IsDataLoss(view.status()));
      return;
    }
    std::string again =
        BeginPage(view->cache_fp, view->block_index, view->tokens,
                  view->payload.size(), view->version);
    std::copy(view->payload.begin(), view->payload.end(),
              PagePayload(again).begin());
    FinishPage(again);
    XCACHE_FUZZ_CHECK(again == page);
  };
  check(bytes);
  // Mutations seldom hit a checksum: mend it, so that the fields are reached.
  std::string mended(bytes);
  if (mended.size() >= xcache::PageBytes(0)) {
    FinishPage(mended);
    check(mended);
  }
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  std::vector<std::string> seeds;
  for (size_t payload_bytes : {size_t{0}, size_t{33}}) {
    std::vector<xcache::TokenId> tokens(xcache::kBlockTokens);
    for (size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = static_cast<xcache::TokenId>(i * 12345);
    }
    std::string page = BeginPage(xcache::Digest{}, 3, tokens, payload_bytes);
    for (uint8_t& byte : PagePayload(page)) byte = 0x5a;
    FinishPage(page);
    seeds.push_back(page);
    page = BeginPage(xcache::Digest{}, 3, tokens, payload_bytes,
                     xcache::kVariablePageFormatVersion);
    FinishPage(page);
    seeds.push_back(page);
  }
  return seeds;
}
