// A small deterministic engine for tests of the scheduler. It keeps rule R1:
// what a sequence computes depends on its token ids and codec alone. Its "K/V
// rows" are digests of the prefix, its pages carry them, and its logits are
// hashes of them, so a wrong block anywhere changes the answer. It checks what
// the engine's contract requires of its callers.
#ifndef XCACHE_TESTS_UNIT_SERVER_CORE_FAKE_ENGINE_H_
#define XCACHE_TESTS_UNIT_SERVER_CORE_FAKE_ENGINE_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/mutex.h"
#include "engine/base/sha256.h"
#include "engine/engine.h"

namespace xcache::testing {

// Byte tokens, then the specials, then some of several bytes (fake_text.h),
// which only a script says.
inline constexpr TokenId kBos = 256;
inline constexpr TokenId kHeader = 257;
inline constexpr TokenId kEnd = 258;       // the template's end of turn
inline constexpr TokenId kOtherEnd = 259;  // ends a generation as well
inline constexpr TokenId kFirstWord = 260;
inline constexpr int kVocab = 264;
// What a hidden row has: the token, its position, and 1.
inline constexpr int kFakeWidth = 3;

class FakeEngine final : public Engine {
 public:
  struct Options {
    size_t kv_block_bytes = 1000;
    // Of a block of RematPolicy::kStep.
    size_t step_block_bytes = 300;
    // Of one that is not whole; and what a row sees where attention slides.
    size_t partial_block_bytes = 200;
    int window = 0;
    size_t sequence_bytes = 500;
    size_t page_bytes = 200;
    size_t codec_bytes = 0;
    int context_length = 8192;
    std::string numerics_id = "fake-1";
    Digest model_fp = Sha256Of("fake model");
    std::chrono::microseconds step_delay{0};
    // How often an answer ends: about one token in so many; 0: never.
    int end_one_in = 24;
  };

  explicit FakeEngine(Options options);

  const ModelInfo& info() const override { return info_; }
  absl::StatusOr<const CodecHandle*> OpenCodec(
      std::string_view spec, const ProgressFn& progress) override;
  absl::StatusOr<size_t> codec_bytes(std::string_view) const override {
    return options_.codec_bytes;
  }
  size_t kv_block_bytes() const override { return options_.kv_block_bytes; }
  size_t sequence_bytes(const CodecHandle&) const override {
    return options_.sequence_bytes;
  }
  absl::StatusOr<std::unique_ptr<Sequence>> NewSequence(
      const CodecHandle& codec, std::span<const TokenId> tokens,
      std::span<const KvBlockRef> blocks, RematPolicy remat) override;
  int64_t max_useful_remat_jobs() const override { return max_remat_jobs_; }
  int64_t StagePages(const CodecHandle& codec,
                     std::span<const RematJob> jobs) override;
  std::vector<absl::StatusOr<KvBlockRef>> Remat(
      const CodecHandle& codec, std::span<const RematJob> jobs) override;
  absl::Status Step(std::span<StepItem> items) override;

  // What it has done. Thread-safe.
  int64_t rows() const { return rows_; }
  int64_t steps() const { return steps_; }
  int64_t remats() const { return remats_; }
  // Of those, blocks of RematPolicy::kStep; and sequences of it.
  int64_t step_remats() const { return step_remats_; }
  int64_t step_sequences() const { return step_sequences_; }
  // Of those, blocks that are not whole.
  int64_t partial_remats() const { return partial_remats_; }
  int64_t sequences() const { return sequences_; }
  // Pages that it was asked to stage, and those that the next Remat began with.
  int64_t staged() const { return staged_; }
  int64_t staged_remats() const { return staged_remats_; }
  int64_t max_step_rows() const { return max_step_rows_; }
  // Steps that held both a decoding sequence and a larger item.
  int64_t mixed_steps() const { return mixed_steps_; }
  // How often the block that ends the prefix with this digest was sealed.
  std::map<Digest, int> seal_counts() const;
  // Bytes of blocks and sequences that exist now, and the most there were.
  int64_t live_bytes() const { return live_->bytes; }
  int64_t peak_bytes() const { return live_->peak; }

  void set_step_delay(std::chrono::microseconds delay) {
    step_delay_us_ = delay.count();
  }
  // A step that forwards this token fails with INTERNAL; -1: none.
  void set_poison(TokenId token) { poison_ = token; }
  // What blocks and sequences may take on the "device"; where a call would take
  // more it is RESOURCE_EXHAUSTED and changes nothing. 0: no limit.
  void set_device_bytes(int64_t bytes) { device_bytes_ = bytes; }
  int64_t refusals() const { return refusals_; }
  // What is answered after a message's header, from its first token on; what
  // comes after it is as ever.
  void set_script(std::vector<TokenId> script) {
    MutexLock lock(mu_);
    script_ = std::move(script);
  }
  void set_max_remat_jobs(int64_t n) { max_remat_jobs_ = n; }
  // The next so many rematerializations are DATA_LOSS.
  void set_remat_failures(int n) { remat_failures_ = n; }

  struct Live {
    std::atomic<int64_t> bytes{0};
    std::atomic<int64_t> peak{0};
    void Add(int64_t n);
  };

 private:
  int64_t BlockBytes(RematPolicy remat) const {
    return static_cast<int64_t>(remat == RematPolicy::kStep
                                    ? options_.step_block_bytes
                                    : options_.kv_block_bytes);
  }
  // Counts a refusal where `num_blocks` more do not fit.
  bool DeviceIsFull(size_t num_blocks);

  const Options options_;
  ModelInfo info_;
  std::map<std::string, std::unique_ptr<CodecHandle>, std::less<>> codecs_;
  const std::shared_ptr<Live> live_ = std::make_shared<Live>();
  std::vector<float> logits_, hidden_;
  std::vector<const char*> staged_pages_;
  std::atomic<int64_t> max_remat_jobs_{16}, staged_{0}, staged_remats_{0};
  std::atomic<int> in_use_{0};
  std::atomic<int64_t> step_delay_us_{0};
  std::atomic<TokenId> poison_{-1};
  std::atomic<int> remat_failures_{0};
  std::atomic<int64_t> device_bytes_{0}, refusals_{0};
  std::atomic<int64_t> rows_{0}, steps_{0}, remats_{0}, max_step_rows_{0},
      mixed_steps_{0}, step_remats_{0}, sequences_{0}, step_sequences_{0},
      partial_remats_{0};
  void FollowScript(std::span<const TokenId> tokens, std::span<float> logits)
      XC_EXCLUDES(mu_);

  mutable Mutex mu_;
  std::vector<TokenId> script_ XC_GUARDED_BY(mu_);
  std::map<Digest, int> seal_counts_ XC_GUARDED_BY(mu_);
};

// What FakeEngine answers: the greedy continuation of `prompt`, computed
// directly, until `max_tokens` or an end token (included).
std::vector<TokenId> FakeGreedy(const FakeEngine::Options& options,
                                std::string_view codec,
                                std::vector<TokenId> prompt, int max_tokens,
                                bool ignore_end);

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_UNIT_SERVER_CORE_FAKE_ENGINE_H_
