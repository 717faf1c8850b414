#include "client/convert.h"

#include "absl/time/time.h"
#include "google/protobuf/duration.pb.h"

namespace xcache::client {
namespace {

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

Role FromProto(v1::Role role) {
  switch (role) {
    case v1::ROLE_SYSTEM:
      return Role::kSystem;
    case v1::ROLE_ASSISTANT:
      return Role::kAssistant;
    default:
      return Role::kUser;
  }
}

FinishReason FromProto(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_END:
      return FinishReason::kEnd;
    case v1::FINISH_REASON_STOP:
      return FinishReason::kStop;
    case v1::FINISH_REASON_MAX_TOKENS:
      return FinishReason::kMaxTokens;
    case v1::FINISH_REASON_CONTEXT:
      return FinishReason::kContext;
    case v1::FINISH_REASON_CANCELLED:
      return FinishReason::kCancelled;
    default:
      return FinishReason::kUnknown;
  }
}

Durability FromProto(v1::Durability durability) {
  switch (durability) {
    case v1::DURABILITY_MEMORY:
      return Durability::kMemory;
    case v1::DURABILITY_LOCAL:
      return Durability::kLocal;
    case v1::DURABILITY_SHARED:
      return Durability::kShared;
    default:
      return Durability::kNone;
  }
}

void ToProto(absl::Duration duration, google::protobuf::Duration* out) {
  absl::Duration nanos;
  out->set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &nanos));
  out->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(nanos)));
}

void ToProto(const SamplingParams& p, v1::SamplingParams* out) {
  if (p.temperature) out->set_temperature(*p.temperature);
  if (p.top_k) out->set_top_k(*p.top_k);
  if (p.top_p) out->set_top_p(*p.top_p);
  if (p.min_p) out->set_min_p(*p.min_p);
  if (p.repetition_penalty) out->set_repetition_penalty(*p.repetition_penalty);
  if (p.presence_penalty) out->set_presence_penalty(*p.presence_penalty);
  if (p.frequency_penalty) out->set_frequency_penalty(*p.frequency_penalty);
  if (p.penalty_last_n) out->set_penalty_last_n(*p.penalty_last_n);
  if (p.seed) out->set_seed(*p.seed);
}

// The requests with a prompt have the same oneof.
template <typename Request>
void SetPrompt(const Prompt& prompt, Request* out) {
  if (prompt.token_ids.empty()) {
    out->set_text(prompt.text);
  } else {
    out->mutable_token_ids()->mutable_ids()->Add(prompt.token_ids.begin(),
                                                 prompt.token_ids.end());
  }
}

absl::Duration Micros(uint64_t us) {
  return absl::Microseconds(static_cast<int64_t>(us));
}

absl::Time FromProto(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) +
         absl::Nanoseconds(time.nanos());
}

}  // namespace

const char* RoleName(Role role) {
  switch (role) {
    case Role::kSystem:
      return "system";
    case Role::kUser:
      return "user";
    case Role::kAssistant:
      return "assistant";
  }
  return "unknown";
}

const char* FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEnd:
      return "end";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kMaxTokens:
      return "max_tokens";
    case FinishReason::kContext:
      return "context";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kUnknown:
      break;
  }
  return "unknown";
}

const char* DurabilityName(Durability durability) {
  switch (durability) {
    case Durability::kMemory:
      return "memory";
    case Durability::kLocal:
      return "local";
    case Durability::kShared:
      return "shared";
    case Durability::kNone:
      break;
  }
  return "none";
}

void ToProto(const Message& message, v1::Message* out) {
  out->set_role(ToProto(message.role));
  out->set_content(message.content);
}

void ToProto(const GenerationParams& params, v1::GenerationParams* out) {
  ToProto(params.sampling, out->mutable_sampling());
  if (params.max_tokens) out->set_max_tokens(*params.max_tokens);
  for (const std::string& stop : params.stop) out->add_stop(stop);
  out->set_logprobs(params.logprobs);
  out->set_no_cache(params.no_cache);
  out->set_ignore_eos(params.ignore_eos);
  out->set_speculate(params.speculate);
}

v1::ChatRequest ToProto(const ChatRequest& request) {
  v1::ChatRequest out;
  out.set_session_id(request.session_id);
  for (const Message& message : request.messages) {
    ToProto(message, out.add_messages());
  }
  if (request.expected_turn) out.set_expected_turn(*request.expected_turn);
  ToProto(request.params, out.mutable_params());
  out.set_regenerate(request.regenerate);
  out.set_keep_partial(request.keep_partial);
  return out;
}

v1::GenerateRequest ToProto(const GenerateRequest& request) {
  v1::GenerateRequest out;
  SetPrompt(request.prompt, &out);
  out.set_parse_special(request.parse_special);
  ToProto(request.params, out.mutable_params());
  return out;
}

v1::ScoreRequest ToProto(const ScoreRequest& request) {
  v1::ScoreRequest out;
  SetPrompt(request.prompt, &out);
  out.set_first(request.first);
  out.set_top_logprobs(request.top_logprobs);
  out.set_no_cache(request.no_cache);
  return out;
}

v1::CreateSessionRequest ToProto(const CreateSessionOptions& options) {
  v1::CreateSessionRequest out;
  out.set_id(options.id);
  out.set_system_prompt(options.system_prompt);
  if (options.ttl) ToProto(*options.ttl, out.mutable_ttl());
  out.set_codec(options.codec);
  out.set_title(options.title);
  out.set_remat(options.remat);
  return out;
}

v1::UpdateSessionRequest ToProto(const std::string& id,
                                 const SessionUpdate& update) {
  v1::UpdateSessionRequest out;
  out.set_id(id);
  if (update.title) out.set_title(*update.title);
  if (update.ttl) ToProto(*update.ttl, out.mutable_ttl());
  return out;
}

SampledToken FromProto(const v1::SampledToken& token) {
  SampledToken out{token.token_id(), token.token(), token.logprob(), {}};
  for (const v1::TokenLogprob& top : token.top()) {
    out.top.push_back({top.token_id(), top.token(), top.logprob()});
  }
  return out;
}

ReusedTokens FromProto(const v1::ReusedTokens& reused) {
  return {reused.device(), reused.host(), reused.disk(), reused.remote()};
}

void FromProto(const v1::Final& final, Answer* answer) {
  answer->finish_reason = FromProto(final.finish_reason());
  answer->stop = final.stop();
  answer->prompt_tokens = final.prompt_tokens();
  answer->generated_tokens = final.generated_tokens();
  answer->drafted_tokens = final.drafted_tokens();
  answer->accepted_tokens = final.accepted_tokens();
  answer->prefilled_tokens = final.prefilled_tokens();
  answer->reused = FromProto(final.reused());
  answer->durability = FromProto(final.durability());
  answer->seed = final.seed();
  answer->turn = final.turn();
  const v1::Timings& t = final.timings();
  answer->timings = {.queue = Micros(t.queue_us()),
                     .restore = Micros(t.restore_us()),
                     .remat = Micros(t.remat_us()),
                     .prefill = Micros(t.prefill_us()),
                     .decode = Micros(t.decode_us()),
                     .ttft = Micros(t.ttft_us()),
                     .commit = Micros(t.commit_us())};
}

SessionInfo FromProto(const v1::Session& session) {
  SessionInfo out;
  out.id = session.id();
  out.title = session.title();
  out.codec = session.codec();
  out.remat = session.remat();
  out.turn = session.turn();
  out.num_tokens = session.num_tokens();
  out.num_messages = session.num_messages();
  out.page_bytes = session.page_bytes();
  out.pinned = session.pinned();
  out.in_memory = session.in_memory();
  out.model_fp = session.model_fp();
  out.needs_migration = session.needs_migration();
  out.retokenized = session.retokenized();
  out.durability = FromProto(session.durability());
  out.create_time = FromProto(session.create_time());
  out.update_time = FromProto(session.update_time());
  if (session.has_expire_time()) {
    out.expire_time = FromProto(session.expire_time());
  }
  for (const v1::Message& message : session.messages()) {
    out.messages.push_back({FromProto(message.role()), message.content()});
  }
  return out;
}

ModelInfo FromProto(const v1::GetModelInfoResponse& info) {
  ModelInfo out;
  out.name = info.name();
  out.architecture = info.architecture();
  out.device = info.device();
  out.numerics_id = info.numerics_id();
  out.model_fp = info.model_fp();
  out.codec = info.codec();
  out.cache_fp = info.cache_fp();
  out.num_layers = info.num_layers();
  out.d_model = info.d_model();
  out.n_heads = info.n_heads();
  out.n_kv_heads = info.n_kv_heads();
  out.head_dim = info.head_dim();
  out.vocab_size = info.vocab_size();
  out.context_length = info.context_length();
  out.num_parameters = info.num_parameters();
  out.chat_template = info.chat_template();
  out.page_bytes_per_token = info.page_bytes_per_token();
  out.kv_fp16_bytes_per_token = info.kv_fp16_bytes_per_token();
  out.server_version = info.server_version();
  return out;
}

Tokens FromProto(const v1::TokenizeResponse& response) {
  return {{response.token_ids().begin(), response.token_ids().end()},
          {response.tokens().begin(), response.tokens().end()}};
}

Detokenized FromProto(const v1::DetokenizeResponse& response) {
  return {response.text(), response.bytes()};
}

ScoreResult FromProto(const v1::ScoreResponse& response) {
  ScoreResult out;
  for (const v1::SampledToken& token : response.tokens()) {
    out.tokens.push_back(FromProto(token));
  }
  out.sum_logprob = response.sum_logprob();
  out.perplexity = response.perplexity();
  out.prompt_tokens = response.prompt_tokens();
  out.reused = FromProto(response.reused());
  return out;
}

SessionList FromProto(const v1::ListSessionsResponse& response) {
  SessionList out;
  for (const v1::Session& session : response.sessions()) {
    out.sessions.push_back(FromProto(session));
  }
  out.next_page_token = response.next_page_token();
  return out;
}

MigrateResult FromProto(const v1::MigrateSessionResponse& response) {
  return {.session = FromProto(response.session()),
          .retokenized = response.retokenized(),
          .tokens_before = response.tokens_before(),
          .tokens_after = response.tokens_after(),
          .messages_dropped = response.messages_dropped()};
}

FlushResult FromProto(const v1::FlushSessionResponse& response) {
  return {response.pages_written(), response.bytes_written()};
}

}  // namespace xcache::client
