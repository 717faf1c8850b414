#include "server/grpc/inference_service.h"

#include <memory>
#include <utility>
#include <vector>

#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"
#include "server/frontend/tools.h"
#include "server/grpc/chat_tools.h"
#include "server/grpc/convert.h"
#include "server/grpc/stream_call.h"
#include "server/grpc/unary_call.h"

namespace xcache {
namespace {

absl::Status Tokenize(const ServerCore& core,
                      const v1::TokenizeRequest& request,
                      v1::TokenizeResponse* response) {
  const Tokenizer& tokenizer = core.tokenizer();
  std::vector<TokenId> tokens;
  switch (request.input_case()) {
    case v1::TokenizeRequest::kText: {
      XC_ASSIGN_OR_RETURN(
          tokens, EncodeText("text", request.text(), request.parse_special(),
                             request.add_bos(), tokenizer));
      break;
    }
    case v1::TokenizeRequest::kMessages: {
      XC_ASSIGN_OR_RETURN(const std::vector<ChatMessage> messages,
                          ToMessages("messages.messages",
                                     request.messages().messages(), false));
      XC_ASSIGN_OR_RETURN(
          tokens, core.RenderChat(messages,
                                  request.messages().add_generation_prompt()));
      break;
    }
    case v1::TokenizeRequest::INPUT_NOT_SET:
      return absl::InvalidArgumentError(
          "input is missing: set text or messages");
  }
  for (TokenId token : tokens) {
    response->add_token_ids(static_cast<uint32_t>(token));
    response->add_tokens(tokenizer.TokenBytes(token, true));
  }
  return absl::OkStatus();
}

absl::Status Detokenize(const ServerCore& core,
                        const v1::DetokenizeRequest& request,
                        v1::DetokenizeResponse* response) {
  XC_ASSIGN_OR_RETURN(const std::vector<TokenId> tokens,
                      ToTokenIds("token_ids", request.token_ids(),
                                 core.tokenizer().vocab_size()));
  response->set_bytes(core.tokenizer().Decode(tokens, request.with_special()));
  response->set_text(ToUtf8(response->bytes()));
  return absl::OkStatus();
}

}  // namespace

grpc::ServerWriteReactor<v1::ChatResponse>* InferenceService::Chat(
    grpc::CallbackServerContext* context, const v1::ChatRequest* request) {
  using Stream = StreamCall<v1::ChatResponse>;
  return Stream::Start(
      deps_, Method::kChat, context, *request,
      [request](Call& call, std::shared_ptr<Stream> self) -> absl::Status {
        XC_ASSIGN_OR_RETURN(ChatTurn turn, ToChatTurn(*request));
        XC_ASSIGN_OR_RETURN(const std::vector<ToolDef> tools,
                            ToTools(*request, &turn.options.grammar));
        call.SetBase(self->cancellation(), &turn);
        XC_RETURN_IF_ERROR(SayTools(call.core(), tools, &turn));
        if (!tools.empty() || request->split_reasoning()) {
          self->Split(AnswerReader(/*with_calls=*/!tools.empty()));
        }
        call.core().SubmitChat(std::move(turn), std::move(self));
        return absl::OkStatus();
      });
}

grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  using Stream = StreamCall<v1::GenerateResponse>;
  return Stream::Start(
      deps_, Method::kGenerate, context, *request,
      [request](Call& call, std::shared_ptr<Stream> self) -> absl::Status {
        XC_ASSIGN_OR_RETURN(GenerateRequest generate,
                            ToGenerate(*request, call.core().tokenizer()));
        call.SetBase(self->cancellation(), &generate);
        call.core().SubmitGenerate(std::move(generate), std::move(self));
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(
    grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
    v1::TokenizeResponse* response) {
  return RunUnary(deps_, Method::kTokenize, context, *request, [=](Call& call) {
    return xcache::Tokenize(call.core(), *request, response);
  });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(
    grpc::CallbackServerContext* context, const v1::DetokenizeRequest* request,
    v1::DetokenizeResponse* response) {
  return RunUnary(deps_, Method::kDetokenize, context, *request,
                  [=](Call& call) {
                    return xcache::Detokenize(call.core(), *request, response);
                  });
}

grpc::ServerUnaryReactor* InferenceService::Score(
    grpc::CallbackServerContext* context, const v1::ScoreRequest* request,
    v1::ScoreResponse* response) {
  return RunScore(deps_, context, request, response);
}

grpc::ServerUnaryReactor* InferenceService::GetModelInfo(
    grpc::CallbackServerContext* context,
    const v1::GetModelInfoRequest* request,
    v1::GetModelInfoResponse* response) {
  return RunUnary(deps_, Method::kGetModelInfo, context, *request,
                  [=](Call& call) {
                    ToProto(call.core(), response);
                    return absl::OkStatus();
                  });
}

}  // namespace xcache
