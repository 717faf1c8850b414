#include "client/command/context.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/command/text.h"
#include "engine/base/status_macros.h"

namespace xcache::command {
namespace {

using nlohmann::json;

std::string IsoTime(absl::Time time) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", time, absl::UTCTimeZone());
}

// A token's bytes need not be a text of their own: part of a character is not.
template <typename Token>
json TokenJson(const Token& token) {
  return {
      {"id", token.token_id},
      {"token", token.token},
      {"bytes", std::vector<uint8_t>(token.token.begin(), token.token.end())},
      {"logprob", token.logprob}};
}

json Ms(absl::Duration d) { return absl::ToDoubleMilliseconds(d); }

// Tokens of an answer for each second of decoding. The first token comes from
// the prefill.
double TokensPerSecond(const client::Answer& answer) {
  const double seconds = absl::ToDoubleSeconds(answer.timings.decode);
  if (seconds <= 0 || answer.generated_tokens < 2) return 0;
  return static_cast<double>(answer.generated_tokens - 1) / seconds;
}

}  // namespace

void AnswerFlags::AddTo(CLI::App* app) {
  client::SamplingParams& s = params.sampling;
  const std::string group = "Answer";
  const auto option = [&](const char* flag, auto& value, const char* help) {
    return app->add_option(flag, value, help)->group(group);
  };
  option("-n,--max-tokens", params.max_tokens, "At most so many tokens")
      ->check(CLI::PositiveNumber);
  option("--temperature", s.temperature, "0: always the likeliest token");
  option("--top-k", s.top_k, "0: off");
  option("--top-p", s.top_p, "In (0, 1]");
  option("--min-p", s.min_p, "In [0, 1]");
  option("--repetition-penalty", s.repetition_penalty, "1: off");
  option("--presence-penalty", s.presence_penalty, "0: off");
  option("--frequency-penalty", s.frequency_penalty, "0: off");
  option("--seed", s.seed, "Makes sampling repeatable");
  option("--stop", params.stop, "End the answer at this text; may be repeated")
      ->allow_extra_args(false);
  app->add_flag("--no-cache", params.no_cache,
                "Neither use nor keep X-cache pages")
      ->group(group);
}

Context::Context(Globals globals)
    : globals_(std::move(globals)),
      out_(Style::For(STDOUT_FILENO)),
      err_(Style::For(STDERR_FILENO)) {}

absl::Status Context::WaitReady(client::Client& client) const {
  // Loading takes long and is worth waiting for; a server that is not there
  // is not, unless the caller says so.
  const absl::Duration loading =
      absl::Seconds(globals_.wait_seconds.value_or(60.0));
  const absl::Duration absent =
      absl::Seconds(globals_.wait_seconds.value_or(0.0));
  Spinner spinner;
  return client.WaitReady(
      loading, absent, [&](const client::Progress& progress) {
        std::string text =
            progress.readiness == client::Readiness::kLoading
                ? absl::StrCat("the server at ", globals_.address, " is ",
                               progress.what.empty() ? "loading its model"
                                                     : OneLine(progress.what))
                : absl::StrCat("waiting for a server at ", globals_.address,
                               ": ", OneLine(progress.what));
        if (progress.percent >= 0) {
          absl::StrAppend(&text, " ", ProgressBar(progress.percent, 20));
        }
        absl::StrAppend(
            &text, absl::StrFormat(" (%.0f s)",
                                   absl::ToDoubleSeconds(progress.waited)));
        spinner.Show(text);
        return !Interrupts::Pending();
      });
}

absl::StatusOr<std::unique_ptr<client::Client>> Context::Connect() const {
  client::ClientOptions options;
  options.address = globals_.address;
  options.token = globals_.token;
  options.tls = globals_.tls;
  options.ca_file = globals_.ca_file;
  options.server_name = globals_.server_name;
  options.cert_file = globals_.cert_file;
  options.key_file = globals_.key_file;
  // As OpenTelemetry hands a trace on to a process.
  if (const char* trace = std::getenv("TRACEPARENT"); trace != nullptr) {
    options.traceparent = [trace = std::string(trace)] { return trace; };
  }
  if (globals_.timeout_seconds) {
    options.deadline = absl::Seconds(*globals_.timeout_seconds);
  }
  XC_ASSIGN_OR_RETURN(auto client, client::Client::Connect(options));
  XC_RETURN_IF_ERROR(WaitReady(*client));
  return client;
}

void Context::PrintJson(const nlohmann::json& value) const {
  // Token bytes need not be UTF-8; JSON must be.
  Write(value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) +
        "\n");
}

void Context::Warn(const client::Answer& answer) const {
  for (const std::string& warning : Warnings(answer)) {
    std::fprintf(stderr, "%swarning: %s%s\n", std::string(err_.red).c_str(),
                 warning.c_str(), std::string(err_.reset).c_str());
  }
}

std::vector<std::string> Warnings(const client::Answer& answer) {
  std::vector<std::string> out;
  if (answer.durability == client::Durability::kMemory) {
    out.emplace_back(
        "the turn is not on disk: it is lost if the server stops now (a full "
        "or failing disk, or a server with --store-dir none)");
  }
  if (answer.finish_reason == client::FinishReason::kContext) {
    out.emplace_back("the answer is cut off: the context is full");
  }
  return out;
}

json ToJson(const client::SessionInfo& session) {
  json out = {
      {"id", session.id},
      {"title", session.title},
      {"codec", session.codec},
      {"turn", session.turn},
      {"num_tokens", session.num_tokens},
      {"num_messages", session.num_messages},
      {"page_bytes", session.page_bytes},
      {"pinned", session.pinned},
      {"in_memory", session.in_memory},
      {"model_fp", session.model_fp},
      {"needs_migration", session.needs_migration},
      {"retokenized", session.retokenized},
      {"durability", client::DurabilityName(session.durability)},
      {"create_time", IsoTime(session.create_time)},
      {"update_time", IsoTime(session.update_time)},
      {"expire_time", session.expire_time ? json(IsoTime(*session.expire_time))
                                          : json(nullptr)}};
  if (!session.remat.empty()) out["remat"] = session.remat;
  for (const client::Message& message : session.messages) {
    out["messages"].push_back({{"role", client::RoleName(message.role)},
                               {"content", message.content}});
  }
  return out;
}

json ToJson(const client::ModelInfo& info) {
  return {{"name", info.name},
          {"architecture", info.architecture},
          {"device", info.device},
          {"numerics_id", info.numerics_id},
          {"model_fp", info.model_fp},
          {"codec", info.codec},
          {"cache_fp", info.cache_fp},
          {"num_layers", info.num_layers},
          {"d_model", info.d_model},
          {"n_heads", info.n_heads},
          {"n_kv_heads", info.n_kv_heads},
          {"head_dim", info.head_dim},
          {"vocab_size", info.vocab_size},
          {"context_length", info.context_length},
          {"num_parameters", info.num_parameters},
          {"chat_template", info.chat_template},
          {"page_bytes_per_token", info.page_bytes_per_token},
          {"kv_fp16_bytes_per_token", info.kv_fp16_bytes_per_token},
          {"server_version", info.server_version}};
}

json ToJson(const client::Answer& answer, bool with_text) {
  json out = {{"finish_reason", client::FinishReasonName(answer.finish_reason)},
              {"stop", answer.stop},
              {"prompt_tokens", answer.prompt_tokens},
              {"generated_tokens", answer.generated_tokens},
              {"drafted_tokens", answer.drafted_tokens},
              {"accepted_tokens", answer.accepted_tokens},
              {"prefilled_tokens", answer.prefilled_tokens},
              {"reused_tokens", answer.reused.total()},
              {"reused",
               {{"device", answer.reused.device},
                {"host", answer.reused.host},
                {"disk", answer.reused.disk},
                {"remote", answer.reused.remote}}},
              {"durability", client::DurabilityName(answer.durability)},
              {"seed", answer.seed},
              {"turn", answer.turn},
              {"tokens_per_second", TokensPerSecond(answer)},
              {"timings_ms",
               {{"queue", Ms(answer.timings.queue)},
                {"restore", Ms(answer.timings.restore)},
                {"remat", Ms(answer.timings.remat)},
                {"prefill", Ms(answer.timings.prefill)},
                {"decode", Ms(answer.timings.decode)},
                {"ttft", Ms(answer.timings.ttft)},
                {"commit", Ms(answer.timings.commit)},
                {"client_ttft", Ms(answer.client_ttft)}}}};
  if (with_text) out["text"] = answer.text;
  for (const client::SampledToken& token : answer.tokens) {
    json one = TokenJson(token);
    one["top"] = json::array();
    for (const client::TokenLogprob& top : token.top) {
      one["top"].push_back(TokenJson(top));
    }
    out["tokens"].push_back(std::move(one));
  }
  if (auto warnings = Warnings(answer); !warnings.empty()) {
    out["warnings"] = std::move(warnings);
  }
  return out;
}

json ToJson(const absl::Status& error) {
  json out = {{"code", absl::StatusCodeToString(error.code())},
              {"message", std::string(error.message())}};
  if (const auto after = client::RetryAfter(error)) {
    out["retry_after_ms"] = absl::ToInt64Milliseconds(*after);
  }
  return {{"error", std::move(out)}};
}

std::string AnswerSummary(const client::Answer& answer) {
  std::vector<std::string> sources;
  const auto source = [&](uint64_t tokens, const char* name) {
    if (tokens > 0) sources.emplace_back(name);
  };
  source(answer.reused.device, "memory");
  source(answer.reused.host, "host pages");
  source(answer.reused.disk, "disk pages");
  source(answer.reused.remote, "remote pages");
  std::string out = absl::StrCat("reused ", HumanCount(answer.reused.total()));
  if (!sources.empty()) {
    absl::StrAppend(&out, " (", absl::StrJoin(sources, ", "), ")");
  }
  absl::StrAppend(&out, " · prefilled ", HumanCount(answer.prefilled_tokens),
                  " · ", HumanCount(answer.generated_tokens),
                  answer.generated_tokens == 1 ? " token" : " tokens");
  if (const double rate = TokensPerSecond(answer); rate > 0) {
    absl::StrAppend(&out, absl::StrFormat(" at %.1f tok/s", rate));
  }
  absl::StrAppend(&out, " · first after ", HumanDuration(answer.client_ttft));
  switch (answer.finish_reason) {
    case client::FinishReason::kMaxTokens:
      absl::StrAppend(&out, " · stopped at --max-tokens");
      break;
    case client::FinishReason::kContext:
      absl::StrAppend(&out, " · the context is full");
      break;
    case client::FinishReason::kCancelled:
      absl::StrAppend(&out, " · cut short, and kept");
      break;
    default:
      break;
  }
  return out;
}

}  // namespace xcache::command
