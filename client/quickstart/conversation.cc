#include "client/quickstart/conversation.h"

#include <array>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"

namespace xcache::quickstart {
namespace {

constexpr size_t kExcerptBytes = 2000;

// Prose first; the interfaces are there in any checkout.
constexpr std::array<const char*, 8> kPages = {
    "README.md",
    "server/CONFIGURATION.md",
    "engine/xcache/PAGE_FORMAT.md",
    "cachestore/FORMAT.md",
    "server/metrics/METRICS.md",
    "proto/xcache/v1/inference.proto",
    "proto/xcache/v1/sessions.proto",
    "client/xcache_client.h"};

constexpr std::array<const char*, 5> kQuestions = {
    "What is this about? Answer in two sentences.",
    "Which detail of it matters most to somebody who uses it?",
    "What could go wrong here, and how would one notice?",
    "Explain one term from it to a newcomer.",
    "What would you ask the author about this?"};

}  // namespace

absl::StatusOr<Conversation> Conversation::Load(const std::string& root) {
  Conversation out;
  for (const char* page : kPages) {
    std::ifstream in(absl::StrCat(root, "/", page), std::ios::binary);
    if (!in) continue;
    const std::string text(std::istreambuf_iterator<char>(in), {});
    for (size_t at = 0; at < text.size();) {
      size_t end = text.size();
      if (end - at > kExcerptBytes) {
        const size_t line = text.rfind('\n', at + kExcerptBytes);
        end = line == std::string::npos || line <= at ? at + kExcerptBytes
                                                      : line + 1;
      }
      // The rest of a page is worth a turn only where there is some of it.
      if (end - at >= kExcerptBytes / 2) {
        out.excerpts_.push_back({page, text.substr(at, end - at)});
      }
      at = end;
    }
  }
  if (out.excerpts_.empty()) {
    return absl::NotFoundError(absl::StrCat(
        "no page of the project's documentation is found below ", root));
  }
  return out;
}

std::string Conversation::Message(size_t turn) const {
  const Excerpt& excerpt = excerpts_[turn % excerpts_.size()];
  const size_t round = turn / excerpts_.size();
  return absl::StrCat("From ", excerpt.path, ":\n\n", excerpt.text, "\n\n",
                      kQuestions[(turn + round) % kQuestions.size()]);
}

}  // namespace xcache::quickstart
