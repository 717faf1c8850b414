// What every fuzz test defines; see README.md.
#ifndef XCACHE_TESTS_FUZZ_FUZZ_H_
#define XCACHE_TESTS_FUZZ_FUZZ_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// One input, of any bytes. Must return 0, and must not crash, leak, hang or use
// memory out of proportion to `size`. Properties that must hold are checked
// with XCACHE_FUZZ_CHECK.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

// Inputs to start from, made at run time so that no binary file is committed.
std::vector<std::string> XcacheFuzzSeeds();

#define XCACHE_FUZZ_CHECK(condition)    \
  do {                                  \
    if (!(condition)) __builtin_trap(); \
  } while (false)

#endif  // XCACHE_TESTS_FUZZ_FUZZ_H_
