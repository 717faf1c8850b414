// What a metrics page's address answers, as `xcache stats` reads it: any bytes
// parse or are refused, and a quantile of what parsed is a number or none.
#include <cmath>
#include <string_view>

#include "client/command/metrics_text.h"
#include "tests/fuzz/fuzz.h"

using xcache::command::MetricsText;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto page = MetricsText::Parse(text);
  if (!page.ok()) {
    XCACHE_FUZZ_CHECK(absl::IsInvalidArgument(page.status()));
    return 0;
  }
  // No name has a space in it.
  XCACHE_FUZZ_CHECK(page->Sum("never there") == 0.0);
  page->Sum("h_bucket", {{"le", "1"}});
  page->Label("c", "method");
  for (const double q : {0.0, 0.5, 0.99, 1.0}) {
    for (const MetricsText* before :
         {static_cast<const MetricsText*>(nullptr),
          static_cast<const MetricsText*>(&*page)}) {
      const auto value = page->Quantile("h", q, before);
      XCACHE_FUZZ_CHECK(!value || !std::isnan(*value));
    }
  }
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  return {
      "# HELP h Seconds.\n# TYPE h histogram\nh_bucket{le=\"0.1\"} 1\n"
      "h_bucket{le=\"1\"} 3\nh_bucket{le=\"+Inf\"} 4\nh_sum 2.5\nh_count 4\n",
      "c{method=\"Chat\",code=\"a\\\\b\\\"c\\n\",} 1e-3 1700000000\nc 2\n"};
}
