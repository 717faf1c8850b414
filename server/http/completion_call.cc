#include "server/http/completion_call.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/sha256.h"
#include "engine/base/status_macros.h"
#include "server/frontend/text_input.h"
#include "server/frontend/tools.h"
#include "server/http/json_body.h"
#include "server/http/openai_error.h"

namespace xcache {

using nlohmann::json;

namespace {

// A call that begins.
json CallObject(const AnswerPart& part) {
  return {{"id", part.id},
          {"type", "function"},
          {"function", {{"name", part.text}, {"arguments", ""}}}};
}

}  // namespace

// Of one answer.
class CompletionCall::Sink final : public RequestSink {
 public:
  Sink(std::shared_ptr<CompletionCall> call, size_t index)
      : call_(std::move(call)), index_(index) {}
  void OnDelta(std::string_view text,
               std::span<const SampledToken> tokens) override {
    call_->OnDelta(index_, text, tokens);
  }
  void OnFinish(const absl::Status& status, const FinalInfo& final) override {
    call_->OnPart(index_, status, &final, {});
  }

 private:
  const std::shared_ptr<CompletionCall> call_;
  const size_t index_;
};

// Of a prompt's log-probabilities.
class CompletionCall::EchoSink final : public RequestSink {
 public:
  EchoSink(std::shared_ptr<CompletionCall> call, size_t index,
           bool is_whole_answer)
      : call_(std::move(call)), index_(index), is_whole_(is_whole_answer) {}
  void OnDelta(std::string_view,
               std::span<const SampledToken> tokens) override {
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  }
  void OnFinish(const absl::Status& status, const FinalInfo& final) override {
    FinalInfo info = final;
    info.finish_reason = FinishReason::kMaxTokens;
    const bool tells = is_whole_ || !status.ok();
    call_->OnPart(index_, status, tells ? &info : nullptr, std::move(tokens_));
  }

 private:
  const std::shared_ptr<CompletionCall> call_;
  const size_t index_;
  const bool is_whole_;
  std::vector<SampledToken> tokens_;
};

absl::Status CompletionCall::Submit() {
  const int vocab_size = call_.core().model().vocab_size;
  {
    XC_ASSIGN_OR_RETURN(const Tree body, TakeBody());
    if (is_chat()) {
      XC_ASSIGN_OR_RETURN(chat_, ToChatCompletion(body.json, vocab_size));
    } else {
      XC_ASSIGN_OR_RETURN(text_, ToTextCompletion(body.json, vocab_size));
    }
  }
  XC_RETURN_IF_ERROR(CheckModel(params().model));
  SetHead();
  if (params().stream) KeepPinging();
  if (!is_chat()) return SubmitTexts();
  const auto n = static_cast<size_t>(params().n);
  if (n > 1) {
    XC_RETURN_IF_ERROR(call_.TakePlaces(static_cast<int64_t>(n) - 1));
  }
  ChatTurn turn;
  turn.messages = std::move(chat_.messages);
  turn.options = chat_.options;
  XC_RETURN_IF_ERROR(SayTools(call_.core(), chat_.tools, &turn));
  const auto cancellations = Cancellations(n);
  {
    MutexLock lock(mu_);
    choices_.resize(n);
    for (Choice& choice : choices_) choice.reader.emplace(!chat_.tools.empty());
    parts_left_ = n;
  }
  for (size_t i = 0; i < n; ++i) {
    ChatTurn one = turn;
    call_.SetBase(cancellations[i], &one);
    // Each answer is one that its seed alone would give.
    if (one.options.seed.has_value()) *one.options.seed += i;
    call_.core().SubmitChat(std::move(one), std::make_shared<Sink>(self(), i));
  }
  return absl::OkStatus();
}

absl::Status CompletionCall::SubmitTexts() {
  ServerCore& core = call_.core();
  const Tokenizer& tokenizer = core.tokenizer();
  const auto n = static_cast<size_t>(params().n);
  const bool scores = text_.echo && text_.logprobs;
  std::vector<std::vector<TokenId>> prompts;
  std::vector<Choice> choices;
  for (size_t p = 0; p < text_.prompts.size(); ++p) {
    const Prompt& prompt = text_.prompts[p];
    std::vector<TokenId> tokens = prompt.tokens;
    if (prompt.is_text) {
      XC_ASSIGN_OR_RETURN(
          tokens, EncodeText("prompt", prompt.text, /*parse_special=*/false,
                             tokenizer.add_bos(), tokenizer));
    }
    for (size_t i = 0; i < n; ++i) {
      Choice& choice = choices.emplace_back();
      if (text_.echo) choice.echo = tokenizer.Decode(tokens);
      if (scores) choice.prompt = tokens;
    }
    prompts.push_back(std::move(tokens));
  }
  const size_t num_choices = choices.size();
  if (num_choices > 1) {
    XC_RETURN_IF_ERROR(call_.TakePlaces(static_cast<int64_t>(num_choices) - 1));
  }
  {
    MutexLock lock(mu_);
    choices_ = std::move(choices);
    parts_left_ = num_choices * ((text_.generate ? 1 : 0) + (scores ? 1 : 0));
    // An echo alone: what is asked for is there already.
    if (parts_left_ == 0) {
      for (size_t i = 0; i < num_choices; ++i) {
        choices_[i].final.prompt_tokens = prompts[i / n].size();
        choices_[i].final.finish_reason = FinishReason::kMaxTokens;
      }
    }
  }
  if (!text_.generate && !scores) {
    Complete();
    return absl::OkStatus();
  }
  const auto cancellations = Cancellations(2 * num_choices);
  for (size_t i = 0; i < num_choices; ++i) {
    const std::vector<TokenId>& prompt = prompts[i / n];
    if (scores) {
      ScoreRequest score;
      score.tokens = prompt;
      score.top_logprobs = text_.top_logprobs;
      call_.SetBase(cancellations[2 * i], &score);
      core.SubmitScore(std::move(score),
                       std::make_shared<EchoSink>(self(), i, !text_.generate));
    }
    if (!text_.generate) continue;
    GenerateRequest generate;
    generate.prompt = prompt;
    generate.options = text_.options;
    if (generate.options.seed.has_value()) *generate.options.seed += i % n;
    call_.SetBase(cancellations[2 * i + 1], &generate);
    core.SubmitGenerate(std::move(generate), std::make_shared<Sink>(self(), i));
  }
  return absl::OkStatus();
}

void CompletionCall::SetHead() {
  head_.id = RandomId(is_chat() ? "chatcmpl-" : "cmpl-");
  head_.object = !is_chat()        ? "text_completion"
                 : params().stream ? "chat.completion.chunk"
                                   : "chat.completion";
  head_.created = UnixSeconds();
  head_.model = options_.model;
  head_.fingerprint =
      absl::StrCat("fp_", ToHex(call_.core().model().model_fp).substr(0, 16));
  chunk_begin_ = ChunkBegin(head_);
  chunk_end_ = ChunkEnd(params().include_usage);
}

void CompletionCall::OnDelta(size_t index, std::string_view text,
                             std::span<const SampledToken> tokens) {
  MutexLock lock(mu_);
  if (!failure_.ok()) return;
  Choice& choice = choices_[index];
  if (!params().stream) {
    choice.text += text;
    choice.tokens.insert(choice.tokens.end(), tokens.begin(), tokens.end());
    return;
  }
  SendChunk(index, choice, text, tokens, nullptr);
}

void CompletionCall::OnPart(size_t index, const absl::Status& status,
                            const FinalInfo* final,
                            std::vector<SampledToken> prompt_tokens) {
  bool last = false, failed = false;
  {
    MutexLock lock(mu_);
    last = --parts_left_ == 0;
    Choice& choice = choices_[index];
    if (final != nullptr) choice.final = *final;
    if (!prompt_tokens.empty()) {
      choice.prompt_tokens = std::move(prompt_tokens);
    }
    if (!status.ok() && failure_.ok()) {
      failed = true;
      failure_ = status;
      retry_after_ms_ = final == nullptr ? 0 : final->retry_after_ms;
    }
    if (failure_.ok() && params().stream && final != nullptr) {
      SendChunk(index, choice, "", {}, final);
    }
  }
  // The others are of no use then.
  if (failed && !last) exchange_->cancellation()->Cancel();
  if (last) Complete();
}

std::vector<std::string> CompletionCall::Deltas(Choice& choice,
                                                std::string_view text,
                                                bool at_end) const {
  using Kind = AnswerPart::Kind;
  std::vector<std::string> out;
  const auto call = [&](json delta) {
    out.push_back(JsonBytes({{"tool_calls", json::array({std::move(delta)})}}));
  };
  for (const AnswerPart& part :
       at_end ? choice.reader->Finish() : choice.reader->Add(text)) {
    switch (part.kind) {
      case Kind::kThought:
        out.push_back(
            absl::StrCat("{\"reasoning_content\":", JsonText(part.text), "}"));
        break;
      case Kind::kText:
        out.push_back(absl::StrCat("{\"content\":", JsonText(part.text), "}"));
        break;
      case Kind::kCall: {
        json begun = CallObject(part);
        begun["index"] = part.call;
        call(std::move(begun));
        break;
      }
      case Kind::kArguments:
        call({{"index", part.call}, {"function", {{"arguments", part.text}}}});
        break;
    }
  }
  return out;
}

void CompletionCall::SendChunk(size_t index, Choice& choice,
                               std::string_view text,
                               std::span<const SampledToken> tokens,
                               const FinalInfo* final) {
  const Tokenizer& tokenizer = call_.core().tokenizer();
  const bool with_end = params().options.ignore_eos;
  std::string data;
  const auto add = [&](std::string_view body, const std::string& logprobs,
                       std::string_view finish) {
    absl::StrAppend(&data, chunk_begin_, "{\"index\":", index, ",",
                    std::string(body), ",\"logprobs\":", logprobs,
                    ",\"finish_reason\":", std::string(finish), "}",
                    chunk_end_);
  };
  const bool first = !std::exchange(choice.begun, true);
  if (first && is_chat()) {
    add("\"delta\":{\"role\":\"assistant\",\"content\":\"\"}", "null", "null");
  } else if (first && !choice.echo.empty()) {
    add(absl::StrCat("\"text\":", JsonText(choice.echo)), "null", "null");
  }
  std::string logprobs = "null";
  if (params().logprobs && !tokens.empty()) {
    if (is_chat()) {
      logprobs = JsonBytes(ChatLogprobs(tokens, with_end, tokenizer));
    } else {
      choice.old_logprobs.Add(tokens, with_end, text_.top_logprobs, tokenizer);
      logprobs = JsonBytes(choice.old_logprobs.Take());
    }
  }
  if (is_chat()) {
    std::vector<std::string> deltas = Deltas(choice, text, final != nullptr);
    if (deltas.empty() && logprobs != "null") deltas.push_back("{}");
    for (const std::string& delta : deltas) {
      add("\"delta\":" + delta, std::exchange(logprobs, "null"), "null");
    }
  } else if (!text.empty() || logprobs != "null") {
    add("\"text\":" + JsonText(text), logprobs, "null");
  }
  if (final != nullptr) {
    add(is_chat() ? "\"delta\":{}" : "\"text\":\"\"", "null",
        absl::StrCat(
            "\"",
            std::string(FinishName(final->finish_reason, choice.has_calls())),
            "\""));
  }
  WriteStream(data);
}

void CompletionCall::Complete() {
  absl::Status status;
  int64_t retry_after_ms = 0;
  std::string details;
  {
    MutexLock lock(mu_);
    ended_ = true;
    status = failure_;
    retry_after_ms = retry_after_ms_;
    FinalInfo sum = choices_.front().final;
    for (size_t i = 1; i < choices_.size(); ++i) {
      sum.generated_tokens += choices_[i].final.generated_tokens;
    }
    details = DescribeFinal(sum);
  }
  const FrontendCall::Ending ending =
      call_.Close(exchange_->Explain(status), retry_after_ms, details);
  MutexLock lock(mu_);
  if (streaming_ || (params().stream && ending.status.ok())) {
    return EndStream(ending);
  }
  if (!ending.status.ok()) {
    return exchange_->Respond(ErrorResponse(
        ending.status, ending.retry_after_ms, call_.request_id()));
  }
  RespondJson(WholeAnswer());
}

void CompletionCall::EndStream(const FrontendCall::Ending& ending) {
  std::string data;
  if (!ending.status.ok()) {
    data = absl::StrCat("data: ", JsonBytes(ErrorBody(ending.status)), "\n\n");
  } else {
    // Of an echo alone nothing was sent yet.
    for (size_t i = 0; i < choices_.size(); ++i) {
      Choice& choice = choices_[i];
      if (!choice.begun) SendChunk(i, choice, "", {}, &choice.final);
    }
    if (params().include_usage) {
      data = absl::StrCat(
          chunk_begin_, "],\"usage\":", JsonBytes(ToJson(UsageOf())),
          ",\"xcache\":", JsonBytes(CacheFigures(choices_.front().final)),
          "}\n\n");
    }
  }
  data += "data: [DONE]\n\n";
  WriteStream(data);
  exchange_->End();
}

Usage CompletionCall::UsageOf() const {
  Usage usage;
  const auto n = static_cast<size_t>(params().n);
  for (size_t i = 0; i < choices_.size(); ++i) {
    const FinalInfo& final = choices_[i].final;
    usage.completion_tokens += final.generated_tokens;
    // A prompt counts once, however many answers it has.
    if (i % n != 0) continue;
    usage.prompt_tokens += final.prompt_tokens;
    usage.cached_tokens += final.reused.total();
  }
  return usage;
}

json CompletionCall::WholeMessage(Choice& choice) const {
  using Kind = AnswerPart::Kind;
  std::string thought, content;
  json calls = json::array();
  std::vector<AnswerPart> parts = choice.reader->Add(choice.text);
  const std::vector<AnswerPart> last = choice.reader->Finish();
  parts.insert(parts.end(), last.begin(), last.end());
  for (const AnswerPart& part : parts) {
    switch (part.kind) {
      case Kind::kThought:
        thought += part.text;
        break;
      case Kind::kText:
        content += part.text;
        break;
      case Kind::kCall:
        calls.push_back(CallObject(part));
        break;
      case Kind::kArguments:
        calls.back()["function"]["arguments"].get_ref<std::string&>() +=
            part.text;
        break;
    }
  }
  json message = {
      {"role", "assistant"}, {"content", content}, {"refusal", nullptr}};
  if (!thought.empty()) message["reasoning_content"] = thought;
  if (calls.empty()) return message;
  if (content.empty()) message["content"] = nullptr;
  message["tool_calls"] = std::move(calls);
  return message;
}

json CompletionCall::WholeChoice(size_t index, Choice& choice) const {
  const Tokenizer& tokenizer = call_.core().tokenizer();
  const bool with_end = params().options.ignore_eos;
  json out = {{"index", index}, {"logprobs", nullptr}};
  if (is_chat()) out["message"] = WholeMessage(choice);
  out["finish_reason"] =
      std::string(FinishName(choice.final.finish_reason, choice.has_calls()));
  if (is_chat()) {
    if (params().logprobs) {
      out["logprobs"] = ChatLogprobs(choice.tokens, with_end, tokenizer);
    }
    return out;
  }
  out["text"] = choice.echo + choice.text;
  if (params().logprobs) {
    TextLogprobs logprobs;
    if (!choice.prompt.empty()) {
      logprobs.AddFirst(choice.prompt.front(), tokenizer);
      logprobs.Add(choice.prompt_tokens, /*with_end=*/true, text_.top_logprobs,
                   tokenizer);
    }
    logprobs.Add(choice.tokens, with_end, text_.top_logprobs, tokenizer);
    out["logprobs"] = logprobs.Take();
  }
  return out;
}

json CompletionCall::WholeAnswer() {
  json out = ToJson(head_);
  json choices = json::array();
  for (size_t i = 0; i < choices_.size(); ++i) {
    choices.push_back(WholeChoice(i, choices_[i]));
  }
  out["choices"] = std::move(choices);
  out["usage"] = ToJson(UsageOf());
  out["xcache"] = CacheFigures(choices_.front().final);
  return out;
}

}  // namespace xcache
