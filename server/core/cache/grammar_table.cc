#include "server/core/cache/grammar_table.h"

#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

using std::chrono::steady_clock;

// Before pages and working sets: it is made again within a moment.
constexpr int kReclaimPriority = 0;

// More than the vocabulary takes, and what most grammars do not come to: what
// one takes is known when it is there.
constexpr int64_t kBytesPerToken = 256;
constexpr int64_t kLikelyBytes = int64_t{8} << 20;

}  // namespace

absl::Status GrammarTable::Entry::status() const {
  // One of its own for each: Debian's Abseil counts references in code that
  // TSan does not see.
  return ready_ ? absl::Status(code_, message_) : absl::OkStatus();
}

GrammarTable::GrammarTable(const Tokenizer& tokenizer, MemoryBudget& memory,
                           CoreMetrics& metrics, std::function<void()> wake)
    : tokenizer_(tokenizer),
      memory_(memory),
      metrics_(metrics),
      wake_(std::move(wake)),
      reclaimer_(memory.AddReclaimer(
          "grammars", kReclaimPriority,
          [this](int64_t wanted) { return Reclaim(wanted); })),
      thread_([this] { Loop(); }) {}

void GrammarTable::Stop() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
  reclaimer_.Reset();
}

GrammarTable::EntryPtr GrammarTable::Get(const std::string& tenant,
                                         const GrammarSpec& spec) {
  std::string key = GrammarKey(spec);
  MutexLock lock(mu_);
  if (const auto it = entries_.find(key); it != entries_.end()) {
    it->second->used_ = ++tick_;
    return it->second;
  }
  auto entry = std::make_shared<Entry>();
  entry->spec_ = spec;
  entry->used_ = ++tick_;
  entries_[key] = entry;
  jobs_[tenant].push_back({std::move(key), entry});
  changed_.Signal();
  return entry;
}

GrammarTable::Job GrammarTable::NextJob() {
  auto it = jobs_.upper_bound(last_tenant_);
  if (it == jobs_.end()) it = jobs_.begin();
  last_tenant_ = it->first;
  Job job = std::move(it->second.front());
  it->second.pop_front();
  if (it->second.empty()) jobs_.erase(it);
  return job;
}

void GrammarTable::Loop() {
  while (true) {
    Job job;
    {
      MutexLock lock(mu_);
      while (jobs_.empty() && !stop_) changed_.Wait(mu_);
      if (stop_) return;
      job = NextJob();
      // The table's and ours: who asked for it is gone.
      if (job.entry.use_count() == 2) {
        entries_.erase(job.key);
        continue;
      }
    }
    Entry& entry = *job.entry;
    const absl::Status status = Compile(entry);
    entry.code_ = status.code();
    entry.message_ = std::string(status.message());
    {
      MutexLock lock(mu_);
      if (absl::IsInvalidArgument(status) || status.ok()) {
        kept_bytes_ += entry.memory_.bytes();
      } else {  // next time there may be memory for it
        entries_.erase(job.key);
      }
      entry.spec_ = GrammarSpec();
      entry.ready_ = true;
      job.entry.reset();
      while (kept_bytes_ > kMaxKeptBytes || entries_.size() > kMaxKept) {
        if (DropOldest() < 0) break;
      }
    }
    wake_();
  }
}

absl::StatusOr<MemoryReservation> GrammarTable::Reserve(int64_t bytes) {
  std::optional<MemoryReservation> memory =
      memory_.Reserve(MemoryAccount::kGrammars, bytes);
  if (memory.has_value()) return *std::move(memory);
  return absl::ResourceExhaustedError(absl::StrCat(
      "no memory for a grammar: it may need ", bytes, " bytes, in use are ",
      memory_.used_bytes(), " of ", memory_.cap_bytes(), " (--memory-bytes)"));
}

absl::Status GrammarTable::Compile(Entry& entry) {
  const steady_clock::time_point begin = steady_clock::now();
  if (compiler_ == nullptr) {
    XC_ASSIGN_OR_RETURN(compiler_memory_,
                        Reserve(tokenizer_.vocab_size() * kBytesPerToken));
    compiler_ = std::make_unique<const GrammarCompiler>(tokenizer_);
    compiler_memory_.TryResize(compiler_->bytes());
  }
  XC_ASSIGN_OR_RETURN(entry.memory_, Reserve(kLikelyBytes));
  absl::StatusOr<std::shared_ptr<const Grammar>> grammar =
      compiler_->Compile(entry.spec_, kMaxGrammarBytes);
  if (!grammar.ok()) {
    entry.memory_.Release();
    return grammar.status();
  }
  if (!entry.memory_.Resize((*grammar)->bytes())) {
    entry.memory_.Release();
    return Reserve((*grammar)->bytes()).status();
  }
  entry.grammar_ = *std::move(grammar);
  metrics_.Observe(
      CoreHistogram::kGrammarCompile,
      std::chrono::duration<double>(steady_clock::now() - begin).count());
  return absl::OkStatus();
}

int64_t GrammarTable::DropOldest() {
  auto oldest = entries_.end();
  for (auto it = entries_.begin(); it != entries_.end(); ++it) {
    // Others get theirs under the lock, or from one they hold.
    if (!it->second->ready() || it->second.use_count() > 1) continue;
    if (oldest == entries_.end() || it->second->used_ < oldest->second->used_) {
      oldest = it;
    }
  }
  if (oldest == entries_.end()) return -1;
  const int64_t bytes = oldest->second->memory_.bytes();
  kept_bytes_ -= bytes;
  entries_.erase(oldest);
  return bytes;
}

int64_t GrammarTable::Reclaim(int64_t wanted_bytes) {
  int64_t freed = 0;
  MutexLock lock(mu_);
  while (freed < wanted_bytes) {
    const int64_t bytes = DropOldest();
    if (bytes < 0) break;
    freed += bytes;
  }
  return freed;
}

}  // namespace xcache
