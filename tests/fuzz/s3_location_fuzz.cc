// Locations, endpoints and keys of any bytes: what is taken is taken again from
// what it was taken to be.
#include <string>

#include "cachestore/shared/s3_location.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace xcache;
  const std::string text(reinterpret_cast<const char*>(data), size);

  const auto location = ParseS3Location(text);
  XCACHE_FUZZ_CHECK(location.ok() ||
                    absl::IsInvalidArgument(location.status()));
  if (location.ok()) {
    const auto again =
        ParseS3Location("s3://" + location->bucket + "/" + location->prefix);
    XCACHE_FUZZ_CHECK(again.ok() && again->bucket == location->bucket &&
                      again->prefix == location->prefix);
    XCACHE_FUZZ_CHECK(CheckObjectKey("a").ok());
    XCACHE_FUZZ_CHECK(location->prefix.empty() ||
                      CheckObjectKey(location->prefix + "a").ok() ||
                      location->prefix.size() >= 512);
  }

  const auto endpoint = ParseHttpEndpoint(text);
  XCACHE_FUZZ_CHECK(endpoint.ok() ||
                    absl::IsInvalidArgument(endpoint.status()));
  if (endpoint.ok()) {
    const auto again = ParseHttpEndpoint(endpoint->Url());
    XCACHE_FUZZ_CHECK(again.ok() && again->Url() == endpoint->Url());
    XCACHE_FUZZ_CHECK(endpoint->host.find_first_of("/@?#\r\n ") ==
                      std::string::npos);
  }
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  return {"s3://bucket/a/prefix/",
          "s3://b-1.x",
          "https://s3.eu-west-1.amazonaws.com",
          "http://[fe80::1%25eth0]:8333/",
          "http://127.1:80",
          "http://user:pass@host/path?query#fragment",
          "http://0x7f.1",
          "http:/%31"};
}
