// Any bytes as a request of the public API: parsed as protobuf does, then
// checked and converted. The first byte says which request. What is accepted
// must keep the limits that the core relies on.
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/coding.h"
#include "engine/base/utf8.h"
#include "engine/sampler.h"
#include "google/protobuf/stubs/logging.h"
#include "nlohmann/json.hpp"
#include "server/core/sessions/manager.h"
#include "server/frontend/answer_reader.h"
#include "server/frontend/text_input.h"
#include "server/frontend/tools.h"
#include "server/grpc/chat_tools.h"
#include "server/grpc/convert.h"
#include "server/grpc/status.h"
#include "server/grpc/triton_request.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/server/grpc/fake_core.h"

namespace {

using namespace xcache;

// A refusal must be INVALID_ARGUMENT, and fit to be sent.
void CheckRefusal(const absl::Status& status) {
  XCACHE_FUZZ_CHECK(absl::IsInvalidArgument(status));
  XCACHE_FUZZ_CHECK(IsUtf8(ToGrpcStatus(status).error_message()));
}

void FuzzOptions(const GenerationOptions& options) {
  const absl::Status status = CheckOptions(options);
  if (!status.ok()) return CheckRefusal(status);
  XCACHE_FUZZ_CHECK(options.max_tokens >= 1);
  XCACHE_FUZZ_CHECK(options.num_logprobs >= 0 &&
                    options.num_logprobs <= kMaxLogprobs);
  XCACHE_FUZZ_CHECK(options.stop.size() <= kMaxStops);
  for (const std::string& stop : options.stop) {
    XCACHE_FUZZ_CHECK(!stop.empty() && stop.size() <= kMaxStopBytes);
  }
}

void CheckTokens(const std::vector<TokenId>& tokens,
                 const Tokenizer& tokenizer) {
  for (TokenId token : tokens) {
    XCACHE_FUZZ_CHECK(token >= 0 && token < tokenizer.vocab_size());
  }
}

template <typename Request>
bool Parse(const uint8_t* data, size_t size, Request* request) {
  return request->ParseFromArray(data, static_cast<int>(size));
}

void FuzzChat(const uint8_t* data, size_t size) {
  v1::ChatRequest request;
  if (!Parse(data, size, &request)) return;
  const auto turn = ToChatTurn(request);
  if (!turn.ok()) return CheckRefusal(turn.status());
  FuzzOptions(turn->options);
  XCACHE_FUZZ_CHECK(turn->regenerate || !turn->messages.empty());
  for (const ChatMessage& message : turn->messages) {
    XCACHE_FUZZ_CHECK(IsUtf8(message.content));
    XCACHE_FUZZ_CHECK(message.content.size() <= kMaxTextBytes);
  }
  GrammarSpec grammar = turn->options.grammar;
  const auto tools = ToTools(request, &grammar);
  if (!tools.ok()) return CheckRefusal(tools.status());
  if (tools->empty()) return;
  XCACHE_FUZZ_CHECK(tools->size() <= kMaxTags);
  XCACHE_FUZZ_CHECK(grammar.kind == GrammarSpec::Kind::kTagged);
  // What is only the format's may still be wrong.
  if (turn->options.grammar.kind == GrammarSpec::Kind::kNone) {
    XCACHE_FUZZ_CHECK(CheckGrammar(grammar).ok());
  }
  for (const ToolDef& tool : *tools) {
    XCACHE_FUZZ_CHECK(nlohmann::json::accept(tool.text));
    XCACHE_FUZZ_CHECK(SpacedJson(tool.text) == tool.text);
    XCACHE_FUZZ_CHECK(nlohmann::json::accept(tool.schema));
  }
}

// An answer of any bytes, in two pieces, as a stream has it.
void FuzzAnswer(const uint8_t* data, size_t size) {
  const std::string answer =
      ToUtf8(std::string(reinterpret_cast<const char*>(data), size));
  AnswerReader reader(/*with_calls=*/size % 2 == 0);
  v1::ChatResponse response;
  const size_t cut = answer.size() / 2;
  ToProto(reader.Add(std::string_view(answer).substr(0, cut)), &response);
  ToProto(reader.Add(std::string_view(answer).substr(cut)), &response);
  ToProto(reader.Finish(), &response);
  XCACHE_FUZZ_CHECK(response.ByteSizeLong() <= 64 + 8 * answer.size());
  uint32_t next = 0;
  for (const v1::ToolCallDelta& call : response.tool_calls()) {
    XCACHE_FUZZ_CHECK(call.index() == next || call.index() + 1 == next);
    if (call.index() == next) {
      XCACHE_FUZZ_CHECK(!call.id().empty() && !call.name().empty());
      ++next;
    }
  }
  XCACHE_FUZZ_CHECK(next == reader.num_calls());
}

void FuzzGenerate(const uint8_t* data, size_t size) {
  static const testing::ByteTokenizer tokenizer;
  v1::GenerateRequest request;
  if (!Parse(data, size, &request)) return;
  const auto generate = ToGenerate(request, tokenizer);
  if (!generate.ok()) return CheckRefusal(generate.status());
  FuzzOptions(generate->options);
  CheckTokens(generate->prompt, tokenizer);
}

void FuzzScore(const uint8_t* data, size_t size) {
  static const testing::ByteTokenizer tokenizer;
  v1::ScoreRequest request;
  if (!Parse(data, size, &request)) return;
  const auto score = ToScore(request, tokenizer);
  if (!score.ok()) return CheckRefusal(score.status());
  CheckTokens(score->tokens, tokenizer);
  const absl::Status status = CheckScore(*score);
  if (!status.ok()) return CheckRefusal(status);
  XCACHE_FUZZ_CHECK(score->tokens.size() >= 2);
  XCACHE_FUZZ_CHECK(score->first >= 0 &&
                    static_cast<size_t>(score->first) < score->tokens.size());
  XCACHE_FUZZ_CHECK(score->top_logprobs >= 0 &&
                    score->top_logprobs <= kMaxTopLogprobs);
}

void FuzzCreateSession(const uint8_t* data, size_t size) {
  v1::CreateSessionRequest request;
  if (!Parse(data, size, &request)) return;
  const auto options = ToCreateSession(request);
  if (!options.ok()) return CheckRefusal(options.status());
  // Only zero is never, and nothing overflows.
  const auto& ttl = request.ttl();
  XCACHE_FUZZ_CHECK(!options->ttl.has_value() ||
                    (options->ttl->count() == 0) ==
                        (ttl.seconds() == 0 && ttl.nanos() == 0));
}

void FuzzTriton(const uint8_t* data, size_t size) {
  inference::ModelInferRequest request;
  if (!Parse(data, size, &request)) return;
  request.set_model_name("m");
  request.clear_model_version();
  const auto infer = ToTriton(request, "m", /*may_stream=*/true);
  if (!infer.ok()) return CheckRefusal(infer.status());
  XCACHE_FUZZ_CHECK(CheckOptions(infer->options).ok());
  XCACHE_FUZZ_CHECK(IsUtf8(infer->text));
}

void FuzzText(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  if (const auto status = ValidateSessionId(bytes); !status.ok()) {
    CheckRefusal(status);
  }
  const std::string fixed = ToUtf8(bytes);
  XCACHE_FUZZ_CHECK(IsUtf8(fixed));
  XCACHE_FUZZ_CHECK(IsUtf8(bytes) == (fixed == bytes));
}

std::string Seed(char kind, const google::protobuf::Message& message) {
  return kind + message.SerializeAsString();
}

void SetParams(v1::GenerationParams* params) {
  params->mutable_sampling()->set_temperature(0.5f);
  params->mutable_sampling()->set_top_k(40);
  params->mutable_sampling()->set_top_p(0.9f);
  params->mutable_sampling()->set_repetition_penalty(1.1f);
  params->mutable_sampling()->set_seed(7);
  params->set_max_tokens(16);
  params->add_stop("\n\n");
  params->set_logprobs(3);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  switch (data[0] % 7) {
    case 0:
      FuzzChat(data + 1, size - 1);
      break;
    case 1:
      FuzzGenerate(data + 1, size - 1);
      break;
    case 2:
      FuzzScore(data + 1, size - 1);
      break;
    case 3:
      FuzzCreateSession(data + 1, size - 1);
      break;
    case 4:
      FuzzTriton(data + 1, size - 1);
      break;
    case 6:
      FuzzAnswer(data + 1, size - 1);
      break;
    default:
      FuzzText(data + 1, size - 1);
  }
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  // It writes a line for each string that is no UTF-8.
  google::protobuf::SetLogHandler(nullptr);
  std::vector<std::string> seeds;
  v1::ChatRequest chat;
  chat.set_session_id("a.session-1");
  chat.set_expected_turn(2);
  chat.add_messages()->set_role(v1::ROLE_SYSTEM);
  chat.mutable_messages(0)->set_content("Be brief.");
  chat.add_messages()->set_role(v1::ROLE_USER);
  chat.mutable_messages(1)->set_content(
      "Gr\xC3\xBC\xC3\x9F"
      "e \xF0\x9F\x98\x80");
  SetParams(chat.mutable_params());
  seeds.push_back(Seed(0, chat));
  v1::Tool* const tool = chat.add_tools();
  tool->set_name("get_weather");
  tool->set_description("Of a \"place\"");
  tool->set_parameters(
      R"({"type": "object", "properties": {"days": {"type": "integer"}}})");
  tool->set_strict(true);
  chat.add_tools()->set_name("now");
  chat.mutable_tool_choice()->set_mode(v1::ToolChoice::MODE_REQUIRED);
  chat.set_parallel_tool_calls(false);
  v1::Message* const answer = chat.add_messages();
  answer->set_role(v1::ROLE_ASSISTANT);
  answer->add_tool_calls()->set_name("now");
  answer->mutable_tool_calls(0)->set_arguments("{}");
  chat.add_messages()->set_role(v1::ROLE_TOOL);
  chat.mutable_messages(3)->set_content("noon");
  seeds.push_back(Seed(0, chat));
  chat.mutable_tool_choice()->set_name("now");
  chat.mutable_params()->mutable_response_format()->set_regex("a+");
  seeds.push_back(Seed(0, chat));
  v1::GenerateRequest generate;
  generate.set_text("Once upon a time");
  SetParams(generate.mutable_params());
  seeds.push_back(Seed(1, generate));
  for (uint32_t id : {0u, 255u, 257u}) {
    generate.mutable_token_ids()->add_ids(id);
  }
  seeds.push_back(Seed(1, generate));
  inference::ModelInferRequest infer;
  (*infer.mutable_parameters())["sequence_id"].set_int64_param(7);
  for (const auto& [name, text] :
       std::vector<std::pair<const char*, std::string>>{
           {"text_input", "Once upon"},
           {"sampling_parameters",
            R"({"top_p": "0.5", "stop": ["a"], "seed": 7})"}}) {
    auto* const input = infer.add_inputs();
    input->set_name(name);
    input->set_datatype("BYTES");
    input->add_shape(1);
    input->mutable_contents()->add_bytes_contents(text);
    FieldWriter(*infer.add_raw_input_contents()).Bytes(text);
  }
  seeds.push_back(Seed(4, infer));
  infer.clear_raw_input_contents();
  seeds.push_back(Seed(4, infer));
  v1::ScoreRequest score;
  score.set_text("to be scored");
  score.set_first(3);
  score.set_top_logprobs(5);
  seeds.push_back(Seed(2, score));
  v1::CreateSessionRequest create;
  create.set_id("new");
  create.set_system_prompt("You are.");
  create.mutable_ttl()->set_seconds(3600);
  create.set_codec("xquant-gqa:bits=3");
  create.set_title("title");
  seeds.push_back(Seed(3, create));
  seeds.push_back("\5customer-17");
  seeds.push_back(
      "\6<think>hm</think>So.\n<tool_call>\n{\"name\": \"f\", "
      "\"arguments\": {\"a\": [1, \"}\"]}}\n</tool_call>");
  return seeds;
}
