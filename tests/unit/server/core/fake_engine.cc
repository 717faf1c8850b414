// The deterministic engine of the scheduler's tests.
#include "tests/unit/server/core/fake_engine.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/crc32c.h"

namespace xcache::testing {
namespace {

// Two threads in the engine at once are what its contract forbids.
class OneThread {
 public:
  explicit OneThread(std::atomic<int>& in_use) : in_use_(in_use) {
    if (in_use_.fetch_add(1) != 0) std::abort();
  }
  ~OneThread() { in_use_.fetch_sub(1); }

 private:
  std::atomic<int>& in_use_;
};

class FakeCodec final : public CodecHandle {
 public:
  FakeCodec(std::string spec, const Digest& model_fp, size_t page_bytes)
      : spec_(std::move(spec)), page_bytes_(page_bytes) {
    Sha256 hash;
    hash.Update(model_fp.data(), model_fp.size()).Field(spec_);
    cache_fp_ = hash.Finish();
  }
  std::string_view spec() const override { return spec_; }
  const Digest& cache_fp() const override { return cache_fp_; }
  size_t page_bytes() const override { return page_bytes_; }

 private:
  const std::string spec_;
  const size_t page_bytes_;
  Digest cache_fp_{};
};

Digest NextDigest(const Digest& before, std::span<const TokenId> tokens) {
  return Sha256()
      .Update(before.data(), before.size())
      .Update(tokens.data(), tokens.size_bytes())
      .Finish();
}

class FakeBlock final : public KvBlock {
 public:
  FakeBlock(const Digest& prefix, int64_t num_bytes,
            std::shared_ptr<FakeEngine::Live> live_bytes, bool is_whole = true)
      : digest(prefix),
        size(num_bytes),
        all_layers(is_whole),
        live(std::move(live_bytes)) {
    live->Add(size);
  }
  ~FakeBlock() override { live->Add(-size); }
  size_t bytes() const override { return static_cast<size_t>(size); }
  bool whole() const override { return all_layers; }
  const Digest digest;

 private:
  const int64_t size;
  const bool all_layers;
  const std::shared_ptr<FakeEngine::Live> live;
};

const Digest& DigestOf(const KvBlockRef& block) {
  return static_cast<const FakeBlock*>(block.get())->digest;
}

// Page: crc32c, digest of the prefix, token ids, padding.
std::string MakePageBytes(const Digest& digest, std::span<const TokenId> tokens,
                          size_t num_bytes) {
  std::string page(std::max(num_bytes, 4 + sizeof(Digest) + 256), '\0');
  std::memcpy(page.data() + 4, digest.data(), sizeof(Digest));
  std::memcpy(page.data() + 36, tokens.data(), tokens.size_bytes());
  const uint32_t crc = Crc32c(page.data() + 4, page.size() - 4);
  std::memcpy(page.data(), &crc, 4);
  return page;
}

class FakeSequence final : public Sequence {
 public:
  FakeSequence(const ModelInfo& info, const CodecHandle& codec,
               std::span<const TokenId> tokens,
               std::span<const KvBlockRef> blocks, RematPolicy policy,
               int64_t bytes, std::shared_ptr<FakeEngine::Live> live)
      : remat(policy),
        info_(info),
        codec_(codec),
        tokens_(tokens.begin(), tokens.end()),
        blocks_(blocks.begin(), blocks.end()),
        bytes_(bytes),
        live_(std::move(live)) {
    live_->Add(bytes_);
  }
  ~FakeSequence() override { live_->Add(-bytes_); }
  const CodecHandle& codec() const override { return codec_; }
  std::span<const TokenId> tokens() const override { return tokens_; }
  std::span<const KvBlockRef> blocks() const override { return blocks_; }
  std::vector<SealedBlock> TakeSealed() override {
    return std::exchange(sealed, {});
  }
  int64_t Truncate(int64_t num_tokens) override {
    const auto left =
        RowsToGoOnFrom(info_, blocks_,
                       num_tokens >= static_cast<int64_t>(blocks_.size()) * 64
                           ? num_tokens
                           : num_tokens / 64 * 64);
    tokens_.resize(static_cast<size_t>(left));
    blocks_.resize(static_cast<size_t>(left / 64));
    return left;
  }
  void Append(TokenId token) { tokens_.push_back(token); }
  void AppendBlock(KvBlockRef block) { blocks_.push_back(std::move(block)); }
  Digest LastDigest() const {
    return blocks_.empty() ? codec_.cache_fp() : DigestOf(blocks_.back());
  }
  // Digest of the whole sequence, from its blocks and its tail.
  Digest State() const {
    return NextDigest(LastDigest(),
                      std::span(tokens_).subspan(blocks_.size() * 64));
  }
  const RematPolicy remat;
  std::vector<SealedBlock> sealed;

 private:
  const ModelInfo& info_;
  const CodecHandle& codec_;
  std::vector<TokenId> tokens_;
  std::vector<KvBlockRef> blocks_;
  const int64_t bytes_;
  const std::shared_ptr<FakeEngine::Live> live_;
};

// Logits as a hash of the state. Letters and the space are likely, so that
// answers are text.
void FillLogits(const Digest& state, int end_one_in, std::span<float> out) {
  uint64_t x = 0;
  std::memcpy(&x, state.data(), sizeof(x));
  const bool end = end_one_in > 0 && x % static_cast<uint64_t>(end_one_in) == 0;
  for (size_t i = 0; i < out.size(); ++i) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    const bool letter = (i >= 'a' && i <= 'z') || i == ' ';
    out[i] = static_cast<float>(x >> 40) * 0x1p-24f + (letter ? 2.0f : -2.0f);
  }
  if (end) out[static_cast<size_t>(x >> 63 ? kEnd : kOtherEnd)] = 5.0f;
}

}  // namespace

void FakeEngine::Live::Add(int64_t n) {
  const int64_t now = bytes.fetch_add(n) + n;
  int64_t most = peak.load();
  while (now > most && !peak.compare_exchange_weak(most, now)) {
  }
}

FakeEngine::FakeEngine(Options options) : options_(std::move(options)) {
  step_delay_us_ = options_.step_delay.count();
  info_.name = "fake";
  info_.device = "fake";
  info_.numerics_id = options_.numerics_id;
  info_.model_fp = options_.model_fp;
  info_.vocab_size = kVocab;
  info_.d_model = kFakeWidth;
  info_.context_length = options_.context_length;
  info_.window = options_.window;
}

absl::StatusOr<const CodecHandle*> FakeEngine::OpenCodec(std::string_view spec,
                                                         const ProgressFn&) {
  if (!spec.starts_with("fake")) {
    return absl::InvalidArgumentError("known codecs: fake");
  }
  auto& handle = codecs_[std::string(spec)];
  if (handle == nullptr) {
    handle = std::make_unique<FakeCodec>(std::string(spec), options_.model_fp,
                                         options_.page_bytes);
  }
  return handle.get();
}

absl::StatusOr<std::unique_ptr<Sequence>> FakeEngine::NewSequence(
    const CodecHandle& codec, std::span<const TokenId> tokens,
    std::span<const KvBlockRef> blocks, RematPolicy remat) {
  const OneThread one_thread(in_use_);
  if (tokens.size() != blocks.size() * 64) {
    return absl::InvalidArgumentError("blocks do not fit the tokens");
  }
  Digest digest = codec.cache_fp();
  for (size_t i = 0; i < blocks.size(); ++i) {
    digest = NextDigest(digest, tokens.subspan(i * 64, 64));
    if (DigestOf(blocks[i]) != digest) {
      return absl::InvalidArgumentError(
          absl::StrCat("block ", i, " is of another prefix"));
    }
  }
  const auto num_rows = static_cast<int64_t>(tokens.size());
  if (RowsToGoOnFrom(info_, blocks, num_rows) != num_rows) {
    return absl::InvalidArgumentError("a block in the window is not whole");
  }
  ++sequences_;
  if (remat == RematPolicy::kStep) ++step_sequences_;
  return std::make_unique<FakeSequence>(
      info_, codec, tokens, blocks, remat,
      static_cast<int64_t>(options_.sequence_bytes), live_);
}

bool FakeEngine::DeviceIsFull(size_t num_blocks) {
  const auto more = static_cast<int64_t>(num_blocks * options_.kv_block_bytes);
  if (device_bytes_ == 0 || live_->bytes + more <= device_bytes_) return false;
  ++refusals_;
  return true;
}

int64_t FakeEngine::StagePages(const CodecHandle&,
                               std::span<const RematJob> jobs) {
  const OneThread one_thread(in_use_);
  staged_pages_.clear();
  for (const RematJob& job : jobs) staged_pages_.push_back(job.page.data());
  staged_ += static_cast<int64_t>(jobs.size());
  return static_cast<int64_t>(jobs.size());
}

std::vector<absl::StatusOr<KvBlockRef>> FakeEngine::Remat(
    const CodecHandle&, std::span<const RematJob> jobs) {
  const OneThread one_thread(in_use_);
  for (size_t i = 0; i < std::min(jobs.size(), staged_pages_.size()); ++i) {
    if (staged_pages_[i] != jobs[i].page.data()) break;
    ++staged_remats_;
  }
  staged_pages_.clear();
  std::vector<absl::StatusOr<KvBlockRef>> out;
  if (DeviceIsFull(jobs.size())) {
    out.assign(jobs.size(), absl::ResourceExhaustedError("the device is full"));
    return out;
  }
  for (const RematJob& job : jobs) {
    ++remats_;
    if (job.remat == RematPolicy::kStep) ++step_remats_;
    const bool whole = job.whole || options_.window == 0;
    if (!whole) ++partial_remats_;
    uint32_t crc = 0;
    if (job.page.size() >= 4) std::memcpy(&crc, job.page.data(), 4);
    const bool fail = remat_failures_ > 0 && remat_failures_-- > 0;
    if (fail || job.page.size() < 292 || crc != Crc32c(job.page.substr(4))) {
      out.push_back(absl::DataLossError("checksum differs"));
      continue;
    }
    if (std::memcmp(job.page.data() + 36, job.tokens.data(), 256) != 0) {
      out.push_back(absl::DataLossError("other tokens"));
      continue;
    }
    Digest digest;
    std::memcpy(digest.data(), job.page.data() + 4, sizeof(digest));
    out.push_back(std::make_shared<const FakeBlock>(
        digest,
        whole ? BlockBytes(job.remat)
              : static_cast<int64_t>(options_.partial_block_bytes),
        live_, whole));
  }
  return out;
}

absl::Status FakeEngine::Step(std::span<StepItem> items) {
  const OneThread one_thread(in_use_);
  size_t num_logits = 0, num_hidden = 0;
  std::set<Sequence*> seen;
  int64_t step_rows = 0;
  bool decodes = false, prefills = false;
  for (const StepItem& item : items) {
    const size_t n = item.sequence->tokens().size();
    if (item.tokens.empty() || item.tokens.size() > 64 - n % 64 ||
        !seen.insert(item.sequence).second) {
      return absl::InvalidArgumentError("not a step");
    }
    for (const TokenId token : item.tokens) {
      if (token < 0 || token >= kVocab) {
        return absl::InvalidArgumentError("no such token");
      }
      if (token == poison_) return absl::InternalError("layer 3 is not finite");
    }
    num_logits += LogitRows(item.logits_mode, item.tokens.size());
    if (item.logits_mode == LogitsMode::kHidden) {
      num_hidden += item.tokens.size() * kFakeWidth;
    }
    step_rows += static_cast<int64_t>(item.tokens.size());
    (item.tokens.size() == 1 ? decodes : prefills) = true;
  }
  const auto ends_block = [](const StepItem& item) {
    return (item.sequence->tokens().size() + item.tokens.size()) % 64 == 0;
  };
  if (DeviceIsFull(static_cast<size_t>(
          std::count_if(items.begin(), items.end(), ends_block)))) {
    return absl::ResourceExhaustedError("the device is full");
  }
  rows_ += step_rows;
  ++steps_;
  if (step_rows > max_step_rows_) max_step_rows_ = step_rows;
  if (decodes && prefills) ++mixed_steps_;
  if (step_delay_us_ > 0) {
    std::this_thread::sleep_for(std::chrono::microseconds(step_delay_us_));
  }
  logits_.assign(num_logits * kVocab, 0);
  hidden_.clear();
  hidden_.reserve(num_hidden);
  size_t row = 0;
  for (StepItem& item : items) {
    auto* sequence = static_cast<FakeSequence*>(item.sequence);
    const size_t first_row = row;
    for (size_t i = 0; i < item.tokens.size(); ++i) {
      sequence->Append(item.tokens[i]);
      if (item.logits_mode == LogitsMode::kHidden) {
        const auto at = static_cast<float>(sequence->tokens().size() - 1);
        hidden_.insert(hidden_.end(),
                       {static_cast<float>(item.tokens[i]), at, 1.0f});
      }
      const bool wanted = item.logits_mode == LogitsMode::kAll ||
                          (item.logits_mode == LogitsMode::kLast &&
                           i + 1 == item.tokens.size());
      if (!wanted) continue;
      FillLogits(sequence->State(), options_.end_one_in,
                 std::span(logits_).subspan(row * kVocab, kVocab));
      FollowScript(sequence->tokens(),
                   std::span(logits_).subspan(row * kVocab, kVocab));
      ++row;
    }
    item.logits = std::span<const float>(logits_).subspan(
        first_row * kVocab, (row - first_row) * kVocab);
    if (item.logits_mode == LogitsMode::kHidden) {
      item.hidden =
          std::span<const float>(hidden_).last(item.tokens.size() * kFakeWidth);
    }
    if (sequence->tokens().size() % 64 != 0) continue;
    const auto tokens = sequence->tokens().last(64);
    const Digest digest = NextDigest(sequence->LastDigest(), tokens);
    auto block = std::make_shared<const FakeBlock>(
        digest, BlockBytes(sequence->remat), live_);
    sequence->sealed.push_back(
        {.block_index = static_cast<int64_t>(sequence->blocks().size()),
         .page = MakePageBytes(digest, tokens, options_.page_bytes),
         .kv = block});
    sequence->AppendBlock(block);
    MutexLock lock(mu_);
    ++seal_counts_[digest];
  }
  return absl::OkStatus();
}

void FakeEngine::FollowScript(std::span<const TokenId> tokens,
                              std::span<float> logits) {
  MutexLock lock(mu_);
  const auto header = std::find(tokens.rbegin(), tokens.rend(), kHeader);
  // A header is two tokens.
  const auto said = header - tokens.rbegin() - 1;
  if (said < 0 || said >= std::ssize(script_)) return;
  logits[static_cast<size_t>(script_[static_cast<size_t>(said)])] = 10.0f;
}

std::map<Digest, int> FakeEngine::seal_counts() const {
  MutexLock lock(mu_);
  return seal_counts_;
}

std::vector<TokenId> FakeGreedy(const FakeEngine::Options& options,
                                std::string_view codec,
                                std::vector<TokenId> prompt, int max_tokens,
                                bool ignore_end) {
  const FakeCodec handle(std::string(codec), options.model_fp, 0);
  std::vector<TokenId> answer;
  std::vector<float> logits(kVocab);
  while (static_cast<int>(answer.size()) < max_tokens) {
    Digest digest = handle.cache_fp();
    const size_t num_blocks = (prompt.size() - 1) / 64;
    for (size_t i = 0; i < num_blocks; ++i) {
      digest = NextDigest(digest, std::span(prompt).subspan(i * 64, 64));
    }
    digest = NextDigest(digest, std::span(prompt).subspan(num_blocks * 64));
    FillLogits(digest, options.end_one_in, logits);
    const auto best = std::max_element(logits.begin(), logits.end());
    const auto token = static_cast<TokenId>(best - logits.begin());
    answer.push_back(token);
    prompt.push_back(token);
    if (!ignore_end && (token == kEnd || token == kOtherEnd)) break;
  }
  return answer;
}

}  // namespace xcache::testing
