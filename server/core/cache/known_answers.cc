#include "server/core/cache/known_answers.h"

#include <algorithm>
#include <utility>

#include "engine/base/ascii.h"
#include "engine/model/think_reader.h"
#include "engine/model/tool_format.h"

namespace xcache {
namespace {

// Of the cap: a bound for servers that have little.
constexpr int64_t kMostParts = 64;
// A node of the list, one of the map with its bucket, and what malloc adds.
constexpr int64_t kAnswerBytes = 256;

// As it reads for clients: what they send back of a call they have put together
// anew, with white space of their own between its parts.
std::string Readable(std::string_view text) {
  const size_t call = std::min(text.find(kCallTrigger), text.size());
  return std::string(Stripped(text.substr(0, call))) +
         SpacedJson(text.substr(call));
}

struct Reading {
  Digest key{};
  Digest thought{};  // zero: none
};

Reading Read(const Digest& place, std::string_view text) {
  ThinkReader thoughts;
  ThinkReader::Part part = thoughts.Add(text);
  const ThinkReader::Part rest = thoughts.Finish();
  part.thought += rest.thought;
  part.text += rest.text;
  Reading out;
  out.key = Sha256()
                .Update(place.data(), place.size())
                .Update(Readable(part.text))
                .Finish();
  if (!part.thought.empty()) out.thought = Sha256Of(Stripped(part.thought));
  return out;
}

}  // namespace

KnownAnswers::KnownAnswers(MemoryBudget& memory, int64_t max_bytes)
    : memory_(memory),
      max_bytes_(std::min(max_bytes, memory.cap_bytes() / kMostParts)) {}

Digest KnownAnswers::Begin(std::string_view tenant) { return Sha256Of(tenant); }

Digest KnownAnswers::After(const Digest& place,
                           std::span<const TokenId> message) {
  return Sha256()
      .Update(place.data(), place.size())
      .Update(message.data(), message.size_bytes())
      .Finish();
}

void KnownAnswers::Add(const Digest& place, std::string_view text,
                       std::span<const TokenId> tokens) {
  const int64_t bytes =
      kAnswerBytes + static_cast<int64_t>(tokens.size_bytes());
  if (bytes > max_bytes_) return;
  std::optional<MemoryReservation> memory =
      memory_.Reserve(MemoryAccount::kAnswers, bytes);
  if (!memory.has_value()) return;
  const Reading reading = Read(place, text);
  Answer answer;
  answer.key = reading.key;
  answer.thought = reading.thought;
  answer.tokens.assign(tokens.begin(), tokens.end());
  answer.memory = *std::move(memory);
  MutexLock lock(mu_);
  const auto drop = [this](Answers::iterator it) XC_REQUIRES(mu_) {
    bytes_ -= it->memory.bytes();
    by_key_.erase(it->key);
    answers_.erase(it);
  };
  if (const auto it = by_key_.find(reading.key); it != by_key_.end()) {
    drop(it->second);
  }
  while (bytes_ + bytes > max_bytes_) drop(std::prev(answers_.end()));
  bytes_ += bytes;
  answers_.push_front(std::move(answer));
  by_key_[reading.key] = answers_.begin();
}

std::optional<std::vector<TokenId>> KnownAnswers::Find(const Digest& place,
                                                       std::string_view text) {
  if (max_bytes_ == 0) return std::nullopt;
  const Reading reading = Read(place, text);
  MutexLock lock(mu_);
  const auto it = by_key_.find(reading.key);
  if (it == by_key_.end()) return std::nullopt;
  const Answer& answer = *it->second;
  if (reading.thought != Digest() && reading.thought != answer.thought) {
    return std::nullopt;
  }
  answers_.splice(answers_.begin(), answers_, it->second);
  return answer.tokens;
}

size_t KnownAnswers::size() const {
  MutexLock lock(mu_);
  return answers_.size();
}

}  // namespace xcache
