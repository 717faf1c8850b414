// Credentials files of any bytes: what is taken fits into a header, and a
// refusal does not repeat the file.
#include <string>

#include "cachestore/shared/credentials.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace xcache;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto credentials = ParseCredentialsFile(text, "default");
  if (credentials.ok()) {
    XCACHE_FUZZ_CHECK(CheckCredentials(*credentials).ok());
    XCACHE_FUZZ_CHECK(text.find(credentials->secret_key) != text.npos);
    return 0;
  }
  XCACHE_FUZZ_CHECK(absl::IsInvalidArgument(credentials.status()) ||
                    absl::IsNotFound(credentials.status()));
  XCACHE_FUZZ_CHECK(credentials.status().message().size() < 200);
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  return {"[default]\naws_access_key_id = AKID\naws_secret_access_key=s/+=\n",
          "# x\r\n[other]\r\nregion=a\r\n[ default ]\r\n"
          "aws_access_key_id=a\r\naws_secret_access_key=b\r\n"
          "aws_session_token=c\r\n",
          "[default", "=\n[]\n"};
}
