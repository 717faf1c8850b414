// What it takes to get a conversation going again: recomputing its prompt, or
// rematerializing its pages, from memory or from the disk tier with a warm and
// a cold page cache.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "cachestore/cache_store.h"
#include "cachestore/page_key.h"
#include "engine/base/memory_budget.h"
#include "engine/base/status_macros.h"
#include "tests/bench/xcache_bench.h"

namespace xcache::bench {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMemoryBytes = int64_t{2} << 30;

// One conversation, and how it was when it was computed from nothing.
struct Conversation {
  std::vector<TokenId> tokens;
  size_t reused_blocks = 0;
  std::vector<PageKey> keys;
  std::vector<std::string> pages;
  std::vector<float> logits;  // of the last token

  std::span<const TokenId> Block(size_t i) const {
    return std::span(tokens).subspan(i * kBlockTokens, kBlockTokens);
  }
};

absl::StatusOr<double> Recompute(Engine& engine, const CodecHandle& codec,
                                 Conversation& c) {
  XC_ASSIGN_OR_RETURN(auto sequence, engine.NewSequence(codec, {}, {}));
  const Timer timer;
  XC_ASSIGN_OR_RETURN(const auto logits, Prefill(engine, *sequence, c.tokens));
  const double ms = timer.ms();
  c.logits.assign(logits.begin(), logits.end());
  PageKey parent = kRootPageKey;
  for (SealedBlock& sealed : sequence->TakeSealed()) {
    const auto i = static_cast<size_t>(sealed.block_index);
    parent = ComputePageKey(codec.cache_fp(), "bench", parent, c.Block(i));
    c.keys.push_back(parent);
    c.pages.push_back(std::move(sealed.page));
  }
  return ms;
}

struct Remat {
  double ms = 0.0;
  size_t kv_bytes = 0;
};

// Rematerializes pages and computes what is not in them, up to the last
// token's logits, which must be those of the recomputation. `whole`: also what
// no row to come sees, where attention slides.
absl::Status Resume(Engine& engine, const CodecHandle& codec,
                    const Conversation& c,
                    std::span<const std::string_view> pages, bool whole,
                    Remat* remat) {
  const Timer timer;
  const size_t reused = pages.size() * kBlockTokens;
  const int64_t first_whole =
      FirstWholeBlock(engine.info(), static_cast<int64_t>(reused));
  std::vector<RematJob> jobs(pages.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    const auto index = static_cast<int64_t>(i);
    jobs[i] = {.block_index = index,
               .page = pages[i],
               .tokens = c.Block(i),
               .whole = whole || index >= first_whole};
  }
  std::vector<KvBlockRef> blocks;
  for (auto& block : engine.Remat(codec, jobs)) {
    XC_RETURN_IF_ERROR(block.status());
    blocks.push_back(*std::move(block));
  }
  *remat = {.ms = timer.ms()};
  for (const KvBlockRef& block : blocks) remat->kv_bytes += block->bytes();
  XC_ASSIGN_OR_RETURN(
      auto sequence,
      engine.NewSequence(codec, std::span(c.tokens).first(reused), blocks));
  XC_ASSIGN_OR_RETURN(
      const auto logits,
      Prefill(engine, *sequence, std::span(c.tokens).subspan(reused)));
  if (logits.size() != c.logits.size() ||
      std::memcmp(logits.data(), c.logits.data(), logits.size_bytes()) != 0) {
    return absl::InternalError("a resumed sequence gives other logits");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CacheStore>> OpenStore(const std::string& dir,
                                                      MemoryBudget& budget) {
  CacheStoreOptions options;
  options.dir = dir;
  return CacheStore::Open(options, budget);
}

void EmptyDir(const std::string& dir) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(dir, ignored)) {
    fs::remove_all(entry.path(), ignored);
  }
}

int64_t DirBytes(const std::string& dir) {
  int64_t total = 0;
  for (const auto& entry : fs::recursive_directory_iterator(dir)) {
    if (entry.is_regular_file()) {
      total += static_cast<int64_t>(entry.file_size());
    }
  }
  return total;
}

// Asks the kernel to drop the store's files from its page cache.
void DropPageCache(const std::string& dir) {
  for (const auto& entry : fs::recursive_directory_iterator(dir)) {
    if (!entry.is_regular_file()) continue;
    const int fd = ::open(entry.path().c_str(), O_RDONLY);
    if (fd < 0) continue;
    ::fdatasync(fd);
    ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    ::close(fd);
  }
}

// Opens the store anew, so that its own memory is empty, and resumes from it.
// The time counts from the first read of a page.
absl::StatusOr<double> ResumeFromDisk(Engine& engine, const CodecHandle& codec,
                                      const Conversation& c,
                                      const std::string& dir, bool cold,
                                      double* read_ms) {
  MemoryBudget budget(kMemoryBytes);
  XC_ASSIGN_OR_RETURN(const auto store, OpenStore(dir, budget));
  if (cold) DropPageCache(dir);
  const Timer timer;
  std::vector<PageRef> held;
  std::vector<std::string_view> pages;
  for (size_t i = 0; i < c.reused_blocks; ++i) {
    XC_ASSIGN_OR_RETURN(const PageHit hit, store->pages().Get(c.keys[i]));
    if (hit.tier != PageTier::kDisk) {
      return absl::InternalError("a page was not read from the disk");
    }
    pages.push_back(hit.page->bytes());
    held.push_back(hit.page);
  }
  *read_ms = timer.ms();
  Remat remat;
  XC_RETURN_IF_ERROR(Resume(engine, codec, c, pages, /*whole=*/false, &remat));
  return timer.ms();
}

}  // namespace

absl::Status BenchResume(Engine& engine, const CodecHandle& codec,
                         const Prompts& prompts, int tokens, int threads,
                         const std::string& store_dir, Report& report) {
  Conversation c;
  c.tokens = prompts.Take(tokens);
  // The last token is always computed: its logits are wanted.
  c.reused_blocks = static_cast<size_t>(tokens - 1) / kBlockTokens;
  XC_ASSIGN_OR_RETURN(const double recompute_ms, Recompute(engine, codec, c));

  const std::vector<std::string_view> pages(
      c.pages.begin(),
      c.pages.begin() + static_cast<ptrdiff_t>(c.reused_blocks));
  Remat remat, whole;
  XC_RETURN_IF_ERROR(Resume(engine, codec, c, pages, true, &whole));  // warm-up
  XC_RETURN_IF_ERROR(Resume(engine, codec, c, pages, true, &whole));
  const Timer memory_timer;
  XC_RETURN_IF_ERROR(Resume(engine, codec, c, pages, false, &remat));
  const double memory_ms = memory_timer.ms();

  EmptyDir(store_dir);
  double save_ms = 0.0;
  {
    MemoryBudget budget(kMemoryBytes);
    XC_ASSIGN_OR_RETURN(const auto store, OpenStore(store_dir, budget));
    const Timer timer;
    for (size_t i = 0; i < c.pages.size(); ++i) {
      XC_RETURN_IF_ERROR(store->PutPage(
          c.keys[i], i == 0 ? kRootPageKey : c.keys[i - 1], c.pages[i]));
    }
    XC_RETURN_IF_ERROR(store->Flush());
    save_ms = timer.ms();
  }
  const int64_t disk_bytes = DirBytes(store_dir);
  double cold_read_ms = 0.0, warm_read_ms = 0.0;
  XC_ASSIGN_OR_RETURN(
      const double cold_ms,
      ResumeFromDisk(engine, codec, c, store_dir, true, &cold_read_ms));
  XC_ASSIGN_OR_RETURN(
      const double warm_ms,
      ResumeFromDisk(engine, codec, c, store_dir, false, &warm_read_ms));
  EmptyDir(store_dir);

  const double per_token =
      static_cast<double>(codec.page_bytes()) / kBlockTokens;
  const int kv_per_token = engine.info().kv_fp16_bytes_per_token;
  const size_t reused = c.reused_blocks * kBlockTokens;
  report.Add({{"engine", "xcache"},
              {"what", "resume"},
              {"codec", codec.spec()},
              {"threads", threads},
              {"tokens", tokens},
              {"reused_tokens", reused},
              {"recompute_ms", recompute_ms},
              {"resume_memory_ms", memory_ms},
              {"resume_disk_cold_ms", cold_ms},
              {"resume_disk_warm_ms", warm_ms},
              {"read_cold_ms", cold_read_ms},
              {"read_warm_ms", warm_read_ms},
              {"remat_ms", remat.ms},
              {"remat_whole_ms", whole.ms},
              {"kv_bytes", remat.kv_bytes},
              {"kv_whole_bytes", whole.kv_bytes},
              {"remat_tokens_per_s",
               static_cast<double>(reused) / std::max(remat.ms, 1e-6) * 1e3},
              {"save_ms", save_ms},
              {"pages", c.pages.size()},
              {"page_bytes", c.pages.size() * codec.page_bytes()},
              {"disk_bytes", disk_bytes},
              {"page_bytes_per_token", per_token},
              {"kv_fp16_bytes_per_token", kv_per_token},
              {"ratio", kv_per_token / per_token}});
  return absl::OkStatus();
}

}  // namespace xcache::bench
