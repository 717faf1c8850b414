#include "server/grpc/convert.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/field_error.h"
#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"
#include "server/config.h"
#include "server/frontend/tools.h"
#include "server/grpc/chat_tools.h"

namespace xcache {
namespace {

constexpr int64_t kMicrosPerSecond = 1'000'000;

SamplingParams ToSampling(const v1::SamplingParams& params) {
  SamplingParams out;
  out.temperature = params.has_temperature() ? params.temperature() : 0.7f;
  out.top_k = ToInt(params.top_k());
  if (params.has_top_p()) out.top_p = params.top_p();
  if (params.has_min_p()) out.min_p = params.min_p();
  if (params.has_repetition_penalty()) {
    out.repetition_penalty = params.repetition_penalty();
  }
  out.presence_penalty = params.presence_penalty();
  out.frequency_penalty = params.frequency_penalty();
  if (params.has_penalty_last_n()) {
    out.penalty_last_n = ToInt(params.penalty_last_n());
  }
  return out;
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEnd:
      return v1::FINISH_REASON_END;
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kMaxTokens:
      return v1::FINISH_REASON_MAX_TOKENS;
    case FinishReason::kContext:
      return v1::FINISH_REASON_CONTEXT;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case FinishReason::kNone:
      break;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

v1::Durability ToProto(Durability durability) {
  switch (durability) {
    case Durability::kMemory:
      return v1::DURABILITY_MEMORY;
    case Durability::kShared:
      return v1::DURABILITY_SHARED;
    case Durability::kLocal:
      return v1::DURABILITY_LOCAL;
    case Durability::kNone:
      break;
  }
  return v1::DURABILITY_UNSPECIFIED;
}

v1::Role ToProto(Role role) {
  switch (role) {
    case Role::kSystem:
      return v1::ROLE_SYSTEM;
    case Role::kUser:
      return v1::ROLE_USER;
    case Role::kAssistant:
      return v1::ROLE_ASSISTANT;
  }
  return v1::ROLE_UNSPECIFIED;
}

std::optional<Role> ToRole(v1::Role role) {
  switch (role) {
    case v1::ROLE_SYSTEM:
      return Role::kSystem;
    case v1::ROLE_USER:
      return Role::kUser;
    case v1::ROLE_ASSISTANT:
      return Role::kAssistant;
    case v1::ROLE_TOOL:
      return Role::kUser;
    default:  // unspecified, and what a later version of the proto may add
      return std::nullopt;
  }
}

void ToProto(int64_t epoch_us, google::protobuf::Timestamp* out) {
  int64_t seconds = epoch_us / kMicrosPerSecond;
  int64_t micros = epoch_us % kMicrosPerSecond;
  if (micros < 0) {
    micros += kMicrosPerSecond;
    --seconds;
  }
  out->set_seconds(seconds);
  out->set_nanos(static_cast<int32_t>(micros * 1000));
}

// A part of a second rounds away from zero, so that only zero means never.
// What seconds there may be is for the core to say.
absl::StatusOr<std::chrono::seconds> ToTtl(
    const google::protobuf::Duration& ttl) {
  if (ttl.nanos() > 999'999'999 || ttl.nanos() < -999'999'999) {
    return FieldError("ttl.nanos", "a part of a second", ttl.nanos());
  }
  constexpr int64_t kMost = int64_t{1} << 40;  // of milliseconds in an int64
  const int64_t part = ttl.nanos() > 0 ? 1 : ttl.nanos() < 0 ? -1 : 0;
  return std::chrono::seconds(std::clamp(ttl.seconds(), -kMost, kMost) + part);
}

uint64_t Micros(int64_t us) {
  return static_cast<uint64_t>(std::max<int64_t>(us, 0));
}

uint32_t Count(int n) { return static_cast<uint32_t>(std::max(n, 0)); }

GrammarSpec ToGrammar(const v1::ResponseFormat& format) {
  using Kind = GrammarSpec::Kind;
  GrammarSpec out;
  switch (format.format_case()) {
    case v1::ResponseFormat::kJsonObject:
      if (format.json_object()) out.kind = Kind::kJsonObject;
      break;
    case v1::ResponseFormat::kJsonSchema:
      out.kind = Kind::kJsonSchema;
      out.text = format.json_schema();
      break;
    case v1::ResponseFormat::kRegex:
      out.kind = Kind::kRegex;
      out.text = format.regex();
      break;
    case v1::ResponseFormat::kChoice:
      out.kind = Kind::kChoice;
      out.choices.assign(format.choice().texts().begin(),
                         format.choice().texts().end());
      break;
    case v1::ResponseFormat::FORMAT_NOT_SET:
      break;
  }
  return out;
}

// The tokens of a oneof { text, token_ids }.
template <typename Request>
absl::StatusOr<std::vector<TokenId>> ToPrompt(const Request& request,
                                              bool parse_special,
                                              const Tokenizer& tokenizer) {
  switch (request.prompt_case()) {
    case Request::kText:
      return EncodeText("text", request.text(), parse_special,
                        tokenizer.add_bos(), tokenizer);
    case Request::kTokenIds:
      return ToTokenIds("token_ids.ids", request.token_ids().ids(),
                        tokenizer.vocab_size());
    case Request::PROMPT_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("prompt is missing: set text or token_ids");
}

}  // namespace

int ToInt(uint32_t value) {
  return static_cast<int>(std::min<uint32_t>(value, 0x7fffffff));
}

GenerationOptions ToOptions(const v1::GenerationParams& params) {
  GenerationOptions out;
  out.sampling = ToSampling(params.sampling());
  if (params.sampling().has_seed()) out.seed = params.sampling().seed();
  if (params.has_max_tokens()) out.max_tokens = params.max_tokens();
  out.stop.assign(params.stop().begin(), params.stop().end());
  out.num_logprobs = ToInt(params.logprobs());
  out.no_cache = params.no_cache();
  out.ignore_eos = params.ignore_eos();
  out.speculate = params.speculate();
  if (params.has_response_format()) {
    out.grammar = ToGrammar(params.response_format());
  }
  return out;
}

absl::StatusOr<std::vector<ChatMessage>> ToMessages(
    std::string_view field,
    const google::protobuf::RepeatedPtrField<v1::Message>& messages,
    bool allow_empty) {
  if (messages.empty() && !allow_empty) {
    return FieldError(field, "at least one message", "empty");
  }
  if (messages.size() > kMaxMessages) {
    return FieldError(field,
                      absl::StrCat("at most ", kMaxMessages, " messages"),
                      messages.size());
  }
  std::vector<ChatMessage> out;
  out.reserve(static_cast<size_t>(messages.size()));
  std::vector<std::string> results;  // of tools, that follow each other
  for (int i = 0; i < messages.size(); ++i) {
    const v1::Message& message = messages.Get(i);
    const std::string name = absl::StrCat(std::string(field), "[", i, "]");
    const std::optional<Role> role = ToRole(message.role());
    if (!role.has_value()) {
      return FieldError(name + ".role",
                        "ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT or ROLE_TOOL",
                        static_cast<int>(message.role()));
    }
    XC_RETURN_IF_ERROR(
        CheckText(name + ".content", message.content(), kMaxTextBytes));
    XC_ASSIGN_OR_RETURN(const std::vector<ToolCall> calls,
                        ToCalls(name, message));
    if (message.role() == v1::ROLE_TOOL) {
      results.push_back(message.content());
      continue;
    }
    XC_RETURN_IF_ERROR(FlushResults(field, &results, &out));
    std::string text = WithCalls(message.content(), calls);
    if (!calls.empty()) {
      XC_RETURN_IF_ERROR(CheckText(name, text, kMaxTextBytes));
    }
    out.push_back({*role, std::move(text)});
  }
  XC_RETURN_IF_ERROR(FlushResults(field, &results, &out));
  return out;
}

absl::StatusOr<std::vector<TokenId>> ToTokenIds(
    std::string_view field,
    const google::protobuf::RepeatedField<uint32_t>& ids, int vocab_size) {
  if (ids.size() > kMaxTokenIds) {
    return FieldError(field, absl::StrCat("at most ", kMaxTokenIds, " ids"),
                      ids.size());
  }
  std::vector<TokenId> out;
  out.reserve(static_cast<size_t>(ids.size()));
  for (int i = 0; i < ids.size(); ++i) {
    if (ids.Get(i) >= static_cast<uint32_t>(vocab_size)) {
      return FieldError(absl::StrCat(std::string(field), "[", i, "]"),
                        absl::StrCat("below the vocabulary's ", vocab_size),
                        ids.Get(i));
    }
    out.push_back(static_cast<TokenId>(ids.Get(i)));
  }
  return out;
}

absl::StatusOr<ChatTurn> ToChatTurn(const v1::ChatRequest& request) {
  ChatTurn out;
  out.session_id = request.session_id();
  XC_ASSIGN_OR_RETURN(out.messages,
                      ToMessages("messages", request.messages(),
                                 /*allow_empty=*/request.regenerate()));
  out.regenerate = request.regenerate();
  out.keep_partial = request.keep_partial();
  if (request.has_expected_turn()) out.expected_turn = request.expected_turn();
  out.options = ToOptions(request.params());
  return out;
}

absl::StatusOr<GenerateRequest> ToGenerate(const v1::GenerateRequest& request,
                                           const Tokenizer& tokenizer) {
  GenerateRequest out;
  out.options = ToOptions(request.params());
  XC_ASSIGN_OR_RETURN(out.prompt,
                      ToPrompt(request, request.parse_special(), tokenizer));
  return out;
}

absl::StatusOr<ScoreRequest> ToScore(const v1::ScoreRequest& request,
                                     const Tokenizer& tokenizer) {
  ScoreRequest out;
  XC_ASSIGN_OR_RETURN(out.tokens, ToPrompt(request, false, tokenizer));
  out.first = request.first();
  out.top_logprobs = ToInt(request.top_logprobs());
  out.no_cache = request.no_cache();
  return out;
}

absl::StatusOr<CreateSessionOptions> ToCreateSession(
    const v1::CreateSessionRequest& request) {
  CreateSessionOptions out;
  out.id = request.id();
  XC_RETURN_IF_ERROR(
      CheckText("system_prompt", request.system_prompt(), kMaxTextBytes));
  out.system_prompt = request.system_prompt();
  if (request.has_ttl()) {
    XC_ASSIGN_OR_RETURN(out.ttl, ToTtl(request.ttl()));
  }
  out.codec = request.codec();
  out.title = request.title();
  out.remat = request.remat();
  return out;
}

absl::StatusOr<SessionUpdate> ToUpdateSession(
    const v1::UpdateSessionRequest& request) {
  SessionUpdate out;
  if (request.has_title()) out.title = request.title();
  if (request.has_ttl()) {
    XC_ASSIGN_OR_RETURN(out.ttl, ToTtl(request.ttl()));
  }
  return out;
}

void ToProto(const ReusedCounts& reused, v1::ReusedTokens* out) {
  out->set_device(reused.device);
  out->set_host(reused.host);
  out->set_disk(reused.disk);
  out->set_remote(reused.remote);
}

void ToProto(const FinalInfo& info, v1::Final* out) {
  out->set_finish_reason(ToProto(info.finish_reason));
  out->set_prompt_tokens(info.prompt_tokens);
  out->set_generated_tokens(info.generated_tokens);
  out->set_drafted_tokens(info.drafted_tokens);
  out->set_accepted_tokens(info.accepted_tokens);
  ToProto(info.reused, out->mutable_reused());
  out->set_prefilled_tokens(info.prefilled_tokens);
  out->set_durability(ToProto(info.durability));
  v1::Timings* timings = out->mutable_timings();
  timings->set_queue_us(Micros(info.timings.queue_us));
  timings->set_restore_us(Micros(info.timings.restore_us));
  timings->set_prefill_us(Micros(info.timings.prefill_us));
  timings->set_decode_us(Micros(info.timings.decode_us));
  timings->set_remat_us(Micros(info.timings.remat_us));
  timings->set_ttft_us(Micros(info.timings.ttft_us));
  timings->set_commit_us(Micros(info.timings.commit_us));
  out->set_seed(info.seed);
  out->set_stop(info.stop);
  out->set_turn(info.turn);
}

void ToProto(const SampledToken& token, const Tokenizer& tokenizer,
             v1::SampledToken* out) {
  out->set_token_id(static_cast<uint32_t>(token.token));
  out->set_token(tokenizer.TokenBytes(token.token, true));
  out->set_logprob(token.logprob);
  for (const TokenLogprob& other : token.top) {
    v1::TokenLogprob* top = out->add_top();
    top->set_token_id(static_cast<uint32_t>(other.token));
    top->set_token(tokenizer.TokenBytes(other.token, true));
    top->set_logprob(other.logprob);
  }
}

void ToProto(const SessionInfo& info, v1::Session* out) {
  out->set_id(info.id);
  out->set_turn(info.turn);
  out->set_num_tokens(info.num_tokens);
  out->set_num_messages(info.num_messages);
  out->set_codec(info.codec);
  out->set_pinned(info.pinned);
  ToProto(info.create_time_us, out->mutable_create_time());
  ToProto(info.update_time_us, out->mutable_update_time());
  if (info.expire_time_us != 0) {
    ToProto(info.expire_time_us, out->mutable_expire_time());
  }
  out->set_page_bytes(info.page_bytes);
  out->set_in_memory(info.in_memory);
  for (const ChatMessage& message : info.messages) {
    v1::Message* m = out->add_messages();
    m->set_role(ToProto(message.role));
    m->set_content(ToUtf8(message.content));
  }
  out->set_title(info.title);
  out->set_remat(info.remat);
  out->set_model_fp(ToHex(info.model_fp));
  out->set_needs_migration(info.needs_migration);
  out->set_durability(ToProto(info.durability));
  out->set_retokenized(info.retokenized);
}

void ToProto(const SessionList& list, v1::ListSessionsResponse* out) {
  for (const SessionInfo& info : list.sessions) {
    ToProto(info, out->add_sessions());
  }
  out->set_next_page_token(list.next_page_token);
}

void ToProto(const FlushResult& result, v1::FlushSessionResponse* out) {
  out->set_pages_written(result.pages_written);
  out->set_bytes_written(result.bytes_written);
}

void ToProto(const MigrateResult& result, v1::MigrateSessionResponse* out) {
  ToProto(result.session, out->mutable_session());
  out->set_retokenized(result.retokenized);
  out->set_tokens_before(result.tokens_before);
  out->set_tokens_after(result.tokens_after);
  out->set_messages_dropped(result.messages_dropped);
}

void ToProto(const ServerCore& core, v1::GetModelInfoResponse* out) {
  const ModelInfo& model = core.model();
  const CodecHandle& codec = core.default_codec();
  out->set_name(ToUtf8(model.name));
  out->set_architecture(ToUtf8(model.architecture));
  out->set_device(model.device);
  out->set_numerics_id(model.numerics_id);
  out->set_model_fp(ToHex(model.model_fp));
  out->set_codec(std::string(codec.spec()));
  out->set_cache_fp(ToHex(codec.cache_fp()));
  out->set_num_layers(Count(model.num_layers));
  out->set_d_model(Count(model.d_model));
  out->set_n_heads(Count(model.n_heads));
  out->set_n_kv_heads(Count(model.n_kv_heads));
  out->set_head_dim(Count(model.head_dim));
  out->set_vocab_size(Count(model.vocab_size));
  out->set_context_length(static_cast<uint32_t>(core.max_context()));
  out->set_num_parameters(Micros(model.num_parameters));
  if (core.chat_template() != nullptr) {
    out->set_chat_template(std::string(core.chat_template()->family()));
  }
  out->set_page_bytes_per_token(static_cast<double>(codec.page_bytes()) /
                                kBlockTokens);
  out->set_kv_fp16_bytes_per_token(model.kv_fp16_bytes_per_token);
  out->set_server_version(std::string(kServerVersion));
}

}  // namespace xcache
