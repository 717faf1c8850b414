#include "server/core/cache/codec_table.h"

#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "server/core/cache/quality.h"

namespace xcache {
namespace {

constexpr size_t kMaxRemembered = 1024;

void WarnOfCost(const Engine& engine, const CodecHandle& codec) {
  const ModelInfo& model = engine.info();
  const auto cost = CostOfMhaForm(codec.spec(), model);
  if (!cost.has_value()) return;
  const double page_bytes_per_token =
      static_cast<double>(codec.page_bytes()) / kBlockTokens;
  const std::string_view name = codec.spec().substr(0, codec.spec().find(':'));
  XC_LOG_WARN("codec for MHA models on a GQA model",
              "codec={} stores_times_the_values_of_gqa_form={:.2f} "
              "gqa_form={}-gqa page_bytes_per_token={:.0f} "
              "kv_fp16_bytes_per_token={} ratio={:.2f}",
              LogValue(codec.spec()), *cost, name, page_bytes_per_token,
              model.kv_fp16_bytes_per_token,
              model.kv_fp16_bytes_per_token / page_bytes_per_token);
}

}  // namespace

CodecRef CodecTable::FindLocked(std::string_view spec) const {
  auto it = entries_.find(spec);
  if (it == entries_.end()) {
    const auto spelling = spellings_.find(spec);
    if (spelling == spellings_.end()) return nullptr;
    it = entries_.find(spelling->second);
    if (it == entries_.end()) return nullptr;
  }
  it->second.used = ++tick_;
  return it->second.codec;
}

CodecRef CodecTable::Find(std::string_view spec) const {
  MutexLock lock(mu_);
  return FindLocked(spec);
}

size_t CodecTable::PageBytes(std::string_view spec) const {
  MutexLock lock(mu_);
  const auto it = page_bytes_.find(spec);
  return it == page_bytes_.end() ? 0 : it->second;
}

std::string CodecTable::OpenSpecs() const {
  std::string specs;
  MutexLock lock(mu_);
  for (const auto& [spec, entry] : entries_) {
    absl::StrAppend(&specs, specs.empty() ? "" : "; ", spec);
  }
  return specs;
}

bool CodecTable::CloseOldest(Engine& engine) {
  MutexLock lock(mu_);
  auto oldest = entries_.end();
  for (auto it = entries_.begin(); it != entries_.end(); ++it) {
    // Ours alone. Others get theirs under the lock, or from one they hold.
    if (it->second.codec.use_count() > 1) continue;
    if (oldest == entries_.end() || it->second.used < oldest->second.used) {
      oldest = it;
    }
  }
  if (oldest == entries_.end()) return false;
  const CodecHandle* const handle = oldest->second.codec.get();
  // Giving it up orders what its last holder did before what follows.
  oldest->second.codec.reset();
  XC_LOG_INFO("codec closed", "codec={}", LogValue(oldest->first));
  engine.CloseCodec(*handle);
  entries_.erase(oldest);
  return true;
}

absl::StatusOr<MemoryReservation> CodecTable::MakeRoom(Engine& engine,
                                                       std::string_view spec) {
  XC_ASSIGN_OR_RETURN(const size_t bytes, engine.codec_bytes(spec));
  const auto num_open = [this] {
    MutexLock lock(mu_);
    return static_cast<int>(entries_.size());
  };
  while (num_open() >= max_open_) {
    if (CloseOldest(engine)) continue;
    return absl::ResourceExhaustedError(absl::StrCat(
        "all ", max_open_,
        " codecs that may be open at once are in use (--max-codecs); try again "
        "later, or use one of those: ",
        OpenSpecs()));
  }
  const auto needed = static_cast<int64_t>(bytes);
  while (true) {
    std::optional<MemoryReservation> memory =
        memory_.TryReserve(MemoryAccount::kCodecs, needed);
    // A codec that nobody uses goes before pages and working sets do.
    if (!memory.has_value() && CloseOldest(engine)) continue;
    if (!memory.has_value()) {
      memory = memory_.Reserve(MemoryAccount::kCodecs, needed);
    }
    if (memory.has_value()) return *std::move(memory);
    const int64_t used = memory_.used_bytes();
    return absl::ResourceExhaustedError(absl::StrCat(
        "no memory for codec '", std::string(spec), "': it needs ", needed,
        " bytes, in use are ", used, " of ", memory_.cap_bytes(),
        " (--memory-bytes; at least ", used + needed,
        " would do); codecs that are open: ", OpenSpecs()));
  }
}

absl::StatusOr<CodecRef> CodecTable::Open(Engine& engine, std::string_view spec,
                                          const ProgressFn& progress) {
  if (CodecRef codec = Find(spec)) return codec;
  XC_ASSIGN_OR_RETURN(MemoryReservation memory, MakeRoom(engine, spec));
  XC_ASSIGN_OR_RETURN(const CodecHandle* const handle,
                      engine.OpenCodec(spec, progress));
  const std::string canonical(handle->spec());
  bool is_new = false;
  CodecRef codec;
  {
    MutexLock lock(mu_);
    if (spellings_.size() >= kMaxRemembered) spellings_.clear();
    if (spec != canonical) spellings_[std::string(spec)] = canonical;
    codec = FindLocked(canonical);
    if (codec != nullptr) return codec;  // the engine's same handle
    if (page_bytes_.size() >= kMaxRemembered) page_bytes_.clear();
    is_new = page_bytes_.emplace(canonical, handle->page_bytes()).second;
    // The engine owns it: CloseOldest says when it goes.
    codec = CodecRef(handle, [](const CodecHandle*) {});
    entries_[canonical] = {codec, std::move(memory), ++tick_};
  }
  if (is_new) WarnOfCost(engine, *codec);
  return codec;
}

}  // namespace xcache
