#include "server/frontend/answer_reader.h"

#include <cstdint>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"

namespace xcache {

std::vector<AnswerPart> AnswerReader::Read(std::string_view text, bool at_end) {
  using Kind = AnswerPart::Kind;
  std::vector<AnswerPart> out;
  const auto add = [&](Kind kind, std::string said) -> AnswerPart& {
    return out.emplace_back(
        AnswerPart{.kind = kind, .text = std::move(said), .call = 0, .id = ""});
  };
  ThinkReader::Part read = at_end ? thoughts_.Finish() : thoughts_.Add(text);
  if (!read.thought.empty()) add(Kind::kThought, std::move(read.thought));
  if (!calls_.has_value()) {
    if (!read.text.empty()) add(Kind::kText, std::move(read.text));
    return out;
  }
  size_t begun = calls_->num_calls();
  std::vector<ToolCallReader::Part> parts = calls_->Add(read.text);
  if (at_end) {
    std::vector<ToolCallReader::Part> last = calls_->Finish();
    for (ToolCallReader::Part& part : last) parts.push_back(std::move(part));
  }
  for (ToolCallReader::Part& part : parts) {
    switch (part.kind) {
      case ToolCallReader::Part::Kind::kText:
        add(Kind::kText, std::move(part.text));
        break;
      case ToolCallReader::Part::Kind::kCall: {
        AnswerPart& call = add(Kind::kCall, std::move(part.text));
        call.call = begun++;
        call.id = RandomId("call_");
        break;
      }
      case ToolCallReader::Part::Kind::kArguments:
        add(Kind::kArguments, std::move(part.text)).call = begun - 1;
        break;
    }
  }
  return out;
}

std::string RandomId(std::string_view prefix) {
  static thread_local absl::BitGen random;
  return absl::StrCat(
      std::string(prefix),
      absl::Hex(absl::Uniform<uint64_t>(random), absl::kZeroPad16),
      absl::Hex(absl::Uniform<uint32_t>(random), absl::kZeroPad8));
}

}  // namespace xcache
