// What the files of xcache-bench share.
#ifndef XCACHE_TESTS_BENCH_XCACHE_BENCH_H_
#define XCACHE_TESTS_BENCH_XCACHE_BENCH_H_

#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "nlohmann/json.hpp"
#include "tests/bench/machine_limits.h"

namespace xcache::bench {

// Prints results: one JSON object a line, or a table for people.
class Report {
 public:
  explicit Report(bool json) : json_(json) {}
  void Add(const nlohmann::ordered_json& row);

 private:
  const bool json_;
  std::string columns_;  // of the table that is being printed
};

// Milliseconds since it was made.
class Timer {
 public:
  double ms() const {
    return std::chrono::duration<double, std::milli>(
               std::chrono::steady_clock::now() - start_)
        .count();
  }

 private:
  std::chrono::steady_clock::time_point start_ =
      std::chrono::steady_clock::now();
};

// What prompts are made of: a text, over and over, or ids spread over the
// vocabulary where there is none. Speed depends on them only where pages differ
// in size.
class Prompts {
 public:
  Prompts(std::vector<TokenId> text, int vocab_size)
      : text_(std::move(text)), vocab_size_(vocab_size) {}
  std::vector<TokenId> Take(int n) const;

 private:
  const std::vector<TokenId> text_;
  const int vocab_size_;
};

// Forwards `tokens` and returns the logits of the last one. Sealing is on, as
// always.
absl::StatusOr<std::span<const float>> Prefill(Engine& engine,
                                               Sequence& sequence,
                                               std::span<const TokenId> tokens);

absl::Status BenchPrefill(Engine& engine, const CodecHandle& codec,
                          const Prompts& prompts, int tokens, int threads,
                          Report& report);
// Each step forwards `rows` tokens of each sequence, as for a draft of rows - 1
// that is then rejected; fewer at a block's end.
absl::Status BenchDecode(Engine& engine, const CodecHandle& codec,
                         const Prompts& prompts, int depth, int tokens,
                         int batch, int rows, int threads, Report& report);
// Compares all ways to get a conversation of `tokens` tokens going again;
// `store_dir` is a folder for the disk tier, emptied before and after.
absl::Status BenchResume(Engine& engine, const CodecHandle& codec,
                         const Prompts& prompts, int tokens, int threads,
                         const std::string& store_dir, Report& report);

// Rematerializes the pages of `tokens` tokens (whole blocks of them).
absl::Status BenchRemat(Engine& engine, const CodecHandle& codec,
                        const Prompts& prompts, int tokens, int threads,
                        const MachineLimits& limits, Report& report);

}  // namespace xcache::bench

#endif  // XCACHE_TESTS_BENCH_XCACHE_BENCH_H_
