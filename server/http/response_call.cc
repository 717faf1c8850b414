#include "server/http/response_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "server/frontend/answer_reader.h"
#include "server/frontend/tools.h"
#include "server/http/json_body.h"
#include "server/http/openai_error.h"
#include "server/http/openai_response.h"
#include "server/http/response_output.h"
#include "server/http/stored_responses.h"

namespace xcache {

using nlohmann::json;

namespace {

// None where there are none.
std::string TextOf(const json& instructions) {
  return instructions.is_null() ? "" : instructions.get<std::string>();
}

}  // namespace

class ResponseCall::Sink final : public RequestSink {
 public:
  explicit Sink(std::shared_ptr<ResponseCall> call) : call_(std::move(call)) {}
  void OnDelta(std::string_view text,
               std::span<const SampledToken> tokens) override {
    call_->OnDelta(text, tokens);
  }
  void OnFinish(const absl::Status& status, const FinalInfo& final) override {
    call_->OnFinish(status, final);
  }

 private:
  const std::shared_ptr<ResponseCall> call_;
};

absl::Status ResponseCall::Submit() {
  {
    XC_ASSIGN_OR_RETURN(const Tree body, TakeBody());
    XC_ASSIGN_OR_RETURN(
        request_,
        ToResponseRequest(body.json, call_.core().model().vocab_size));
  }
  XC_RETURN_IF_ERROR(CheckModel(request_.model));
  name_ = RandomId("");
  said_ = request_.echo;
  said_["created_at"] = UnixSeconds();
  said_["model"] = options_.model;
  said_["store"] = request_.store;
  said_["instructions"] =
      request_.instructions.has_value() && !request_.instructions->empty();
  plan_.options = request_.options;
  plan_.messages = std::move(request_.input);
  {
    MutexLock lock(mu_);
    output_.emplace(said_.contains("tools"));
  }
  XC_RETURN_IF_ERROR(Plan());
  if (request_.stream) KeepPinging();
  SubmitTurn();
  return absl::OkStatus();
}

absl::Status ResponseCall::Plan() {
  ServerCore& core = call_.core();
  const std::string_view default_system = DefaultSystemOf(core);
  plan_.keep = request_.store ? TurnKeep::kNew : TurnKeep::kNothing;
  json instructions;
  std::string prompt;  // what it goes on from begins with
  if (!request_.conversation.empty()) {
    const auto found =
        FindConversation(core, call_.tenant(), request_.conversation);
    XC_RETURN_IF_ERROR(WithField(found.status(), "conversation"));
    instructions = InstructionsOf(*found, default_system);
    prompt = SystemPromptOf(*found);
    plan_.session_id = found->id;
    if (request_.store) plan_.keep = TurnKeep::kInPlace;
    session_ = found->id;
  } else if (!request_.previous.empty()) {
    const auto found = FindResponse(core, call_.tenant(), request_.previous);
    if (absl::IsNotFound(found.status())) {
      return WithCode(
          WithField(absl::InvalidArgumentError(found.status().message()),
                    "previous_response_id"),
          "previous_response_not_found");
    }
    XC_RETURN_IF_ERROR(found.status());
    instructions = InstructionsOf(found->session, default_system);
    prompt = SystemPromptOf(found->session);
    plan_.session_id = found->session.id;
    plan_.after = found->note.name;
    // Its own session goes on, as long as nobody else has gone on there, and
    // nothing of it changes.
    may_branch_ = request_.store && IsChain(plan_.session_id) &&
                  found->session.num_messages == found->note.num_messages &&
                  SystemPrompt(TextOf(instructions)) == prompt;
    if (may_branch_) {
      plan_.keep = TurnKeep::kInPlace;
      plan_.expected_turn = found->session.turn;
      session_ = plan_.session_id;
    }
  }
  const std::string wanted = SystemPrompt(TextOf(instructions));
  if (request_.instructions.has_value() || wanted != prompt) {
    plan_.system_prompt = wanted;
  }
  if (!request_.instructions.has_value()) {
    said_["instructions"] = !instructions.is_null();
    request_.instructions = TextOf(instructions);
  }
  if (plan_.keep != TurnKeep::kInPlace) PlanBranch();
  return absl::OkStatus();
}

std::string ResponseCall::SystemPrompt(const std::string& had) const {
  const std::string& said = request_.instructions.value_or(had);
  return SystemPromptWith(call_.core(), said, request_.tools);
}

void ResponseCall::PlanBranch() {
  if (plan_.keep == TurnKeep::kInPlace) {
    plan_.keep = TurnKeep::kNew;
    plan_.expected_turn.reset();
  }
  may_branch_ = false;
  session_ = RandomId(kChainPrefix);
  plan_.new_session_id = session_;
}

void ResponseCall::SubmitTurn() {
  ChatTurn turn = plan_;
  call_.SetBase(exchange_->cancellation(), &turn);
  if (request_.store) turn.note = {.name = name_, .data = JsonBytes(said_)};
  call_.core().SubmitChat(
      std::move(turn),
      std::make_shared<Sink>(
          std::static_pointer_cast<ResponseCall>(shared_from_this())));
}

void ResponseCall::OnDelta(std::string_view text,
                           std::span<const SampledToken> tokens) {
  MutexLock lock(mu_);
  if (request_.logprobs) {
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  }
  if (request_.stream) EmitFirst();
  json logprobs = Logprobs(tokens);
  if (text.empty() && logprobs.empty()) return;
  Say(output_->Add(text), std::move(logprobs));
}

void ResponseCall::Say(const std::vector<OutputReader::Part>& parts,
                       json logprobs) {
  if (!request_.stream) return;
  for (const OutputReader::Part& part : parts) {
    if (part.begins) EmitBegin(part.index);
    if (part.text.empty() && logprobs.empty()) continue;
    json event = Place(part.index);
    event["delta"] = part.text;
    if (output_->items()[part.index].is_call) {
      Emit("response.function_call_arguments.delta", std::move(event));
      continue;
    }
    event["content_index"] = 0;
    event["logprobs"] = std::exchange(logprobs, json::array());
    Emit("response.output_text.delta", std::move(event));
  }
}

void ResponseCall::OnFinish(const absl::Status& status,
                            const FinalInfo& final) {
  if (absl::IsAborted(status) && may_branch_) {
    bool untold = false;
    {
      MutexLock lock(mu_);
      untold = !begun_;
      if (untold) {
        output_.emplace(said_.contains("tools"));
        tokens_.clear();
      }
    }
    if (untold) {
      return RunWork([this] {
        PlanBranch();
        SubmitTurn();
        return absl::OkStatus();
      });
    }
  }
  {
    MutexLock lock(mu_);
    note_.finish_reason = final.finish_reason;
    note_.prompt_tokens = final.prompt_tokens;
    note_.reused_tokens = final.reused.total();
    note_.generated_tokens = final.generated_tokens;
    figures_ = CacheFigures(final);
  }
  Complete(status, final.retry_after_ms, DescribeFinal(final));
}

void ResponseCall::Refuse(const absl::Status& status, int64_t retry_after_ms) {
  Complete(status, retry_after_ms, "");
}

void ResponseCall::Complete(const absl::Status& status, int64_t retry_after_ms,
                            std::string_view details) {
  const FrontendCall::Ending ending =
      call_.Close(exchange_->Explain(status), retry_after_ms, details);
  MutexLock lock(mu_);
  ended_ = true;
  if (!ending.status.ok() && !streaming_) {
    return exchange_->Respond(ErrorResponse(
        ending.status, ending.retry_after_ms, call_.request_id()));
  }
  if (!request_.stream) {
    output_->Finish();
    return RespondJson(Object(ResponseStatus(note_.finish_reason)));
  }
  EmitFirst();
  if (ending.status.ok()) {
    Say(output_->Finish(), json::array());
    EmitLast();
  } else {
    const json error = ErrorBody(ending.status)["error"];
    json object = Object("failed");
    object["error"] = {{"code", error["code"]}, {"message", error["message"]}};
    Emit("response.failed", {{"response", std::move(object)}});
  }
  exchange_->End();
}

void ResponseCall::Emit(std::string_view type, json event) {
  event["type"] = std::string(type);
  event["sequence_number"] = next_event_++;
  WriteStream(absl::StrCat("event: ", std::string(type),
                           "\ndata: ", JsonBytes(event), "\n\n"));
}

void ResponseCall::EmitFirst() {
  if (begun_) return;
  begun_ = true;
  const json object = Object("in_progress");
  Emit("response.created", {{"response", object}});
  Emit("response.in_progress", {{"response", object}});
}

json ResponseCall::Place(size_t index) const {
  return {{"item_id", ItemId(output_->items()[index], name_, index)},
          {"output_index", index}};
}

void ResponseCall::EmitBegin(size_t index) {
  if (index > 0) EmitEnd(index - 1, "completed");
  OutputItem begun = output_->items()[index];
  begun.text.clear();
  json item = ItemObject(begun, name_, index, "in_progress", json::array());
  if (!begun.is_call) item["content"] = json::array();
  Emit("response.output_item.added",
       {{"output_index", index}, {"item", std::move(item)}});
  if (begun.is_call) return;
  json event = Place(index);
  event["content_index"] = 0;
  event["part"] = TextPart("", json::array());
  Emit("response.content_part.added", std::move(event));
}

void ResponseCall::EmitEnd(size_t index, std::string_view status) {
  const OutputItem& item = output_->items()[index];
  // Of text alone, which is one item then.
  const json logprobs = Logprobs(tokens_);
  json event = Place(index);
  if (item.is_call) {
    event["name"] = item.name;
    event["arguments"] = item.text;
    Emit("response.function_call_arguments.done", std::move(event));
  } else {
    event["content_index"] = 0;
    json text = event;
    text["text"] = item.text;
    text["logprobs"] = logprobs;
    Emit("response.output_text.done", std::move(text));
    event["part"] = TextPart(item.text, logprobs);
    Emit("response.content_part.done", std::move(event));
  }
  Emit("response.output_item.done",
       {{"output_index", index},
        {"item", ItemObject(item, name_, index, status, logprobs)}});
}

void ResponseCall::EmitLast() {
  const std::string_view status = ResponseStatus(note_.finish_reason);
  EmitEnd(output_->items().size() - 1, status);
  Emit(absl::StrCat("response.", std::string(status)),
       {{"response", Object(status)}, {"xcache", figures_}});
}

json ResponseCall::Logprobs(std::span<const SampledToken> tokens) const {
  if (!request_.logprobs) return json::array();
  return ChatLogprobs(tokens, request_.options.ignore_eos,
                      call_.core().tokenizer())["content"];
}

json ResponseCall::Object(std::string_view status) const {
  json said = said_;
  said["id"] = ResponseId(name_, session_);
  said["instructions"] =
      said_["instructions"] == true ? json(*request_.instructions) : json();
  if (!ended_) return ResponseObject(said, status, json::array(), nullptr);
  json output = json::array();
  if (status != "failed") {
    output = OutputObject(output_->items(), name_, status, Logprobs(tokens_));
  }
  return ResponseObject(said, status, std::move(output), &note_);
}

}  // namespace xcache
