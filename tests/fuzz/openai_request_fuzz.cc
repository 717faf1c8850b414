// Any bytes as the body of a request of the HTTP API: parsed, checked and
// converted. The first byte says which request: a for a chat, r for a response,
// c for a conversation, e for embeddings, s for a session's change, f for a
// fork, q for a list's query. What is accepted must keep the limits that the
// core relies on.
#include <string>

#include "engine/base/utf8.h"
#include "server/frontend/text_input.h"
#include "server/http/json_body.h"
#include "server/http/json_fields.h"
#include "server/http/json_order.h"
#include "server/http/openai_error.h"
#include "server/http/openai_request.h"
#include "server/http/responses_request.h"
#include "server/http/session_call.h"
#include "server/http/stored_responses.h"
#include "tests/fuzz/fuzz.h"

namespace {

using namespace xcache;

constexpr int kVocabSize = 258;

// A refusal must be INVALID_ARGUMENT, and fit to be sent.
void CheckRefusal(const absl::Status& status) {
  XCACHE_FUZZ_CHECK(absl::IsInvalidArgument(status));
  const HttpResponse response = ErrorResponse(status, 0, "id");
  XCACHE_FUZZ_CHECK(response.status == 400);
  XCACHE_FUZZ_CHECK(IsUtf8(response.body));
  XCACHE_FUZZ_CHECK(response.body.size() < 16'384);
}

void CheckParams(const CompletionParams& params) {
  const absl::Status status = CheckOptions(params.options);
  if (!status.ok()) return CheckRefusal(status);
  XCACHE_FUZZ_CHECK(params.n >= 1 && params.n <= kMaxAnswers);
  XCACHE_FUZZ_CHECK(params.options.max_tokens >= 1);
  XCACHE_FUZZ_CHECK(params.options.stop.size() <= kMaxStops);
  for (const auto& [token, bias] : params.options.sampling.logit_bias) {
    XCACHE_FUZZ_CHECK(token >= 0 && token < kVocabSize);
    XCACHE_FUZZ_CHECK(bias >= -100.0f && bias <= 100.0f);
  }
}

void CheckMessages(const std::vector<ChatMessage>& messages) {
  for (const ChatMessage& message : messages) {
    XCACHE_FUZZ_CHECK(IsUtf8(message.content));
    XCACHE_FUZZ_CHECK(message.content.size() <= kMaxTextBytes);
  }
}

// What keeps its order is the same JSON as before.
void CheckOrders(std::string_view text, nlohmann::json* body) {
  const nlohmann::json before = *body;
  KeepOrders(text, body);
  for (const char* name : {"guided_json", "tools"}) {
    if (!before.contains(name)) continue;
    const nlohmann::json& was = before[name];
    const nlohmann::json& is = (*body)[name];
    const auto check = [](const nlohmann::json& a, const nlohmann::json& b) {
      XCACHE_FUZZ_CHECK(
          a.is_object() ? nlohmann::json::parse(OrderedText(b)) == a : a == b);
    };
    if (!was.is_array()) {
      check(was, is);
      continue;
    }
    for (size_t i = 0; i < was.size(); ++i) check(was[i], is[i]);
  }
}

void FuzzChat(const nlohmann::json& body) {
  const auto chat = ToChatCompletion(body, kVocabSize);
  if (!chat.ok()) return CheckRefusal(chat.status());
  CheckParams(*chat);
  XCACHE_FUZZ_CHECK(!chat->messages.empty());
  for (const ToolDef& tool : chat->tools) {
    XCACHE_FUZZ_CHECK(
        !nlohmann::json::parse(tool.text, nullptr, false).is_discarded());
  }
  CheckMessages(chat->messages);
}

void FuzzResponse(const nlohmann::json& body) {
  const auto response = ToResponseRequest(body, kVocabSize);
  if (!response.ok()) return CheckRefusal(response.status());
  CheckParams(*response);
  XCACHE_FUZZ_CHECK(response->n == 1 && !response->input.empty());
  CheckMessages(response->input);
  XCACHE_FUZZ_CHECK(response->previous.empty() ||
                    response->conversation.empty());
  ParseResponseId(response->previous).status().IgnoreError();
  // What is kept of it fits beside its answer, and is read again.
  const std::string kept = JsonBytes(response->echo);
  XCACHE_FUZZ_CHECK(kept.size() < (256 << 10));
  const AnswerNote note{.name = "n", .data = kept, .num_messages = 1};
  SessionInfo session;
  session.messages = {{.role = Role::kAssistant, .content = "x"}};
  const auto stored = StoredResponse({session, note}, "");
  XCACHE_FUZZ_CHECK(IsUtf8(JsonBytes(stored)));
}

void FuzzConversation(const nlohmann::json& body) {
  const auto conversation = ToConversationRequest(body);
  if (!conversation.ok()) return CheckRefusal(conversation.status());
  CheckMessages(conversation->items);
  XCACHE_FUZZ_CHECK(JsonBytes(conversation->metadata).size() <=
                    kMaxSessionDataBytes);
}

void FuzzSession(const nlohmann::json& body) {
  const auto update = ToSessionUpdate(body);
  if (!update.ok()) return CheckRefusal(update.status());
  XCACHE_FUZZ_CHECK(update->title.has_value() || update->pinned.has_value() ||
                    update->ttl.has_value());
  XCACHE_FUZZ_CHECK(!update->ttl.has_value() || update->ttl->count() >= 0);
  XCACHE_FUZZ_CHECK(!update->data.has_value() && update->forget.empty());
}

void FuzzFork(const nlohmann::json& body) {
  const auto fork = ToForkOptions(body);
  if (!fork.ok()) return CheckRefusal(fork.status());
  XCACHE_FUZZ_CHECK(fork->tenant.empty() && fork->id.empty());
  XCACHE_FUZZ_CHECK(fork->num_messages <= uint64_t{kMaxJsonInt} &&
                    fork->keep_last_messages <= uint64_t{kMaxJsonInt});
}

void FuzzQuery(std::string_view query) {
  const auto page = ToPageRequest(query);
  if (!page.ok()) return CheckRefusal(page.status());
  XCACHE_FUZZ_CHECK(page->limit >= 1 && page->limit <= 100);
  const auto list = ListObject({{{"id", "a"}}, {{"id", "b"}}}, *page);
  if (!list.ok()) CheckRefusal(list.status());
}

void FuzzEmbedding(const nlohmann::json& body) {
  constexpr int kWidth = 8;
  const auto embedding = ToEmbedding(body, kVocabSize, kWidth);
  if (!embedding.ok()) return CheckRefusal(embedding.status());
  XCACHE_FUZZ_CHECK(!embedding->inputs.empty() &&
                    embedding->inputs.size() <= kMaxEmbeddings);
  const int64_t dimensions = embedding->dimensions.value_or(kWidth);
  XCACHE_FUZZ_CHECK(dimensions >= 1 && dimensions <= kWidth);
  for (const Prompt& input : embedding->inputs) {
    XCACHE_FUZZ_CHECK(IsUtf8(input.text));
    XCACHE_FUZZ_CHECK(!input.text.empty() || !input.tokens.empty());
    for (const TokenId token : input.tokens) {
      XCACHE_FUZZ_CHECK(token >= 0 && token < kVocabSize);
    }
  }
}

void FuzzText(const nlohmann::json& body) {
  const auto text = ToTextCompletion(body, kVocabSize);
  if (!text.ok()) return CheckRefusal(text.status());
  CheckParams(*text);
  XCACHE_FUZZ_CHECK(!text->prompts.empty() &&
                    text->prompts.size() * static_cast<size_t>(text->n) <=
                        static_cast<size_t>(kMaxAnswers));
  for (const Prompt& prompt : text->prompts) {
    XCACHE_FUZZ_CHECK(IsUtf8(prompt.text));
    for (TokenId token : prompt.tokens) {
      XCACHE_FUZZ_CHECK(token >= 0 && token < kVocabSize);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1,
                               size - 1);
  if (data[0] == 'q') {
    FuzzQuery(bytes);
    return 0;
  }
  const JsonCost cost = CostOf(bytes);
  XCACHE_FUZZ_CHECK(cost.bytes >= 0);
  auto body = ParseJsonObject(bytes, cost);
  if (body.ok()) CheckOrders(bytes, &*body);
  if (!body.ok()) {
    CheckRefusal(body.status());
  } else if (data[0] == 'a') {
    FuzzChat(*body);
  } else if (data[0] == 'r') {
    FuzzResponse(*body);
  } else if (data[0] == 'c') {
    FuzzConversation(*body);
  } else if (data[0] == 'e') {
    FuzzEmbedding(*body);
  } else if (data[0] == 's') {
    FuzzSession(*body);
  } else if (data[0] == 'f') {
    FuzzFork(*body);
  } else {
    FuzzText(*body);
  }
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  const std::string params =
      R"("model":"m","temperature":0.5,"top_p":0.9,"n":2,"stream":true,)"
      R"("stream_options":{"include_usage":true},"stop":["\n\n","x"],)"
      R"("seed":7,"logit_bias":{"5":-100,"257":1.5},"presence_penalty":1,)"
      R"("frequency_penalty":-1,"top_k":40,"user":"u")";
  return {
      "a{" + params +
          R"(,"max_completion_tokens":9,"logprobs":true,"top_logprobs":3,)"
          R"("messages":[{"role":"system","content":"Be brief."},)"
          R"({"role":"user","content":[{"type":"text","text":"hi"}]},)"
          R"({"role":"assistant","content":"\u00fc\ud83d\ude00"}]})",
      "b{" + params + R"(,"prompt":["a","b"],"max_tokens":3,"logprobs":2})",
      R"(b{"prompt":[[1,2],[3]],"echo":true,"logprobs":1,"max_tokens":0})",
      R"(b{"prompt":[0,255,257]})",
      R"(r{"input":"hi","instructions":"Be.","previous_response_id":"resp_0_a",)"
      R"("store":false,"max_output_tokens":9,"metadata":{"k":"v"},)"
      R"("include":["message.output_text.logprobs"],"top_logprobs":2})",
      R"(r{"input":[{"role":"developer","content":"x"},{"type":"message",)"
      R"("role":"user","content":[{"type":"input_text","text":"y"}]}],)"
      R"("conversation":{"id":"conv_1"},"stream":true,"truncation":"disabled",)"
      R"("text":{"format":{"type":"text"}},"background":false})",
      R"(r{"input":[{"role":"user","content":"x"},{"type":"function_call",)"
      R"("name":"f","arguments":"{}","call_id":"c"},{"type":)"
      R"("function_call_output","output":"y","call_id":"c"}],"tools":)"
      R"([{"type":"function","name":"f","parameters":{"type":"object"}}],)"
      R"("tool_choice":{"type":"function","name":"f"}})",
      R"(c{"metadata":{"a":"b"},"items":[{"role":"user","content":"x"}]})",
      R"(e{"input":["a","\u00fc"],"encoding_format":"base64","dimensions":4,)"
      R"("pooling":"last","model":"m"})",
      R"(e{"input":[[1,2],[257]],"encoding_format":"float","dimensions":8.0})",
      R"(e{"input":[0,255,257],"pooling":"mean"})",
      R"(s{"title":"t","pinned":true,"ttl_seconds":60})",
      R"(f{"id":"a","num_messages":2,"keep_last_messages":1.0})",
      "qlimit=5&order=asc&after=msg%5F1",
      R"(a{"messages":[{"role":"user","content":"x"}],"tools":[{}],)"
      R"("response_format":{"type":"json_object"}})",
      R"(a{"messages":[{"role":"assistant","tool_calls":[{"function":)"
      R"({"name":"f","arguments":"{}"}}]},{"role":"tool","content":"x"}],)"
      R"("tools":[{"type":"function","function":{"name":"f","strict":true,)"
      R"("parameters":{"type":"object","properties":{"b":{"pattern":"^a{2}"},)"
      R"("a":{"$ref":"#/$defs/c"}}}}}],"tool_choice":"required"})",
      R"(a{"messages":[{"role":"user","content":"x"}],"response_format":)"
      R"({"type":"json_schema","json_schema":{"schema":{"enum":[1,"a"]}}}})",
      R"(b{"prompt":"x","guided_regex":"(a[^b]{1,3}|.)*","guided_json":{"a":1}})",
      R"(b{"prompt":"x","structured_outputs":{"choice":["a","b"]}})",
  };
}
