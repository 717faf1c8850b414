#include "server/http/openai_response.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/utf8.h"
#include "server/http/json_body.h"

namespace xcache {
namespace {

using nlohmann::json;

// JSON has no infinity; OpenAI's own stand-in for a token that is impossible.
constexpr double kImpossible = -9999.0;

json Logprob(float logprob) {
  return std::isfinite(logprob) ? static_cast<double>(logprob) : kImpossible;
}

json BytesOf(const std::string& bytes) {
  json out = json::array();
  for (const char c : bytes) out.push_back(static_cast<uint8_t>(c));
  return out;
}

json TokenJson(TokenId token, float logprob, const Tokenizer& tokenizer) {
  const std::string bytes = tokenizer.TokenBytes(token, /*with_special=*/true);
  return {{"token", ToUtf8(bytes)},
          {"logprob", Logprob(logprob)},
          {"bytes", BytesOf(bytes)}};
}

bool IsText(const SampledToken& token, bool with_end,
            const Tokenizer& tokenizer) {
  return with_end || !tokenizer.IsEndOfGeneration(token.token);
}

}  // namespace

std::string_view FinishName(FinishReason reason, bool calls) {
  return reason == FinishReason::kMaxTokens || reason == FinishReason::kContext
             ? "length"
         : calls ? "tool_calls"
                 : "stop";
}

json ChatLogprobs(std::span<const SampledToken> tokens, bool with_end,
                  const Tokenizer& tokenizer) {
  json content = json::array();
  for (const SampledToken& token : tokens) {
    if (!IsText(token, with_end, tokenizer)) continue;
    json one = TokenJson(token.token, token.logprob, tokenizer);
    json top = json::array();
    for (const TokenLogprob& other : token.top) {
      top.push_back(TokenJson(other.token, other.logprob, tokenizer));
    }
    one["top_logprobs"] = std::move(top);
    content.push_back(std::move(one));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

void TextLogprobs::AddToken(const std::string& bytes) {
  tokens_.push_back(ToUtf8(bytes));
  offsets_.push_back(offset_);
  // All bytes but those that go on with a character.
  offset_ += std::count_if(bytes.begin(), bytes.end(), [](char c) {
    return (static_cast<uint8_t>(c) & 0xC0u) != 0x80u;
  });
}

void TextLogprobs::Add(std::span<const SampledToken> tokens, bool with_end,
                       int num_top, const Tokenizer& tokenizer) {
  for (const SampledToken& token : tokens) {
    if (!IsText(token, with_end, tokenizer)) continue;
    const std::string bytes = tokenizer.TokenBytes(token.token, true);
    AddToken(bytes);
    logprobs_.push_back(Logprob(token.logprob));
    if (num_top == 0) continue;
    // The token itself is among them, whatever its rank.
    json top = json::object({{ToUtf8(bytes), Logprob(token.logprob)}});
    for (const TokenLogprob& other : token.top) {
      top[ToUtf8(tokenizer.TokenBytes(other.token, true))] =
          Logprob(other.logprob);
    }
    top_.push_back(std::move(top));
  }
}

void TextLogprobs::AddFirst(TokenId token, const Tokenizer& tokenizer) {
  AddToken(tokenizer.TokenBytes(token, true));
  logprobs_.push_back(nullptr);
  top_.push_back(nullptr);
}

json TextLogprobs::Take() {
  const auto take = [](json* part) {
    return std::exchange(*part, json::array());
  };
  // Null where no alternatives were asked for.
  json top = take(&top_);
  const bool has_top = std::any_of(
      top.begin(), top.end(), [](const json& one) { return one.is_object(); });
  json out = {{"tokens", take(&tokens_)},
              {"token_logprobs", take(&logprobs_)},
              {"text_offset", take(&offsets_)}};
  out["top_logprobs"] = has_top ? std::move(top) : json();
  return out;
}

json ToJson(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

json CacheFigures(const FinalInfo& final) {
  return {{"reused",
           {{"device", final.reused.device},
            {"host", final.reused.host},
            {"disk", final.reused.disk},
            {"remote", final.reused.remote}}},
          {"prefilled_tokens", final.prefilled_tokens},
          {"queue_us", final.timings.queue_us},
          {"restore_us", final.timings.restore_us},
          {"prefill_us", final.timings.prefill_us},
          {"decode_us", final.timings.decode_us},
          {"ttft_us", final.timings.ttft_us},
          {"durability", std::string(DurabilityName(final.durability))}};
}

json ToJson(const ObjectHead& head) {
  return {{"id", head.id},
          {"object", head.object},
          {"created", head.created},
          {"model", head.model},
          {"system_fingerprint", head.fingerprint}};
}

std::string ChunkBegin(const ObjectHead& head) {
  std::string out = JsonBytes(ToJson(head));
  out.pop_back();  // its brace
  return absl::StrCat("data: ", out, ",\"choices\":[");
}

std::string ChunkEnd(bool with_null_usage) {
  return with_null_usage ? "],\"usage\":null}\n\n" : "]}\n\n";
}

}  // namespace xcache
