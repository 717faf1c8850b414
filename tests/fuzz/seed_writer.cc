// Gives libFuzzer the seeds that a fuzz test makes at run time:
//   XCACHE_FUZZ_SEED_DIR=corpus gguf_fuzz corpus
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerInitialize(int* /*argc*/, char*** /*argv*/) {
  const char* dir = std::getenv("XCACHE_FUZZ_SEED_DIR");
  if (dir == nullptr) return 0;
  std::filesystem::create_directories(dir);
  const std::vector<std::string> seeds = XcacheFuzzSeeds();
  for (size_t i = 0; i < seeds.size(); ++i) {
    std::ofstream out(
        std::filesystem::path(dir) / ("seed-" + std::to_string(i)),
        std::ios::binary);
    out.write(seeds[i].data(), static_cast<std::streamsize>(seeds[i].size()));
    if (!out) {
      std::fprintf(stderr, "cannot write seeds into %s\n", dir);
      std::exit(2);
    }
  }
  return 0;
}
