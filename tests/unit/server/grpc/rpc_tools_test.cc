// Tools and thoughts, over the wire: answers that the fake core says.
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "server/grpc/rpc_server.h"
#include "tests/unit/server/grpc/eventually.h"
#include "tests/unit/server/grpc/fake_core.h"
#include "xcache/v1/inference.grpc.pb.h"

namespace xcache {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

const char kAnswer[] =
    "<think>\nhm\n</think>\n\nWell.\n<tool_call>\n{\"name\": \"f\", "
    "\"arguments\": {\"a\": \"}\"}}\n</tool_call>";

class RpcToolsTest : public ::testing::Test {
 protected:
  RpcToolsTest() : auth_(Authenticator::Create("").value()) {
    frontend_ = std::make_unique<Frontend>(
        Frontend::Options{.metrics = &metrics_, .auth = auth_.get()});
    frontend_->gate.Open(&core_);
    RpcServerOptions options;
    options.listen.address = "127.0.0.1:0";
    options.frontend = frontend_.get();
    server_ = RpcServer::Listen(options).value();
    inference_ = v1::Inference::NewStub(grpc::CreateChannel(
        server_->address(), grpc::InsecureChannelCredentials()));
    v1::Message* const message = request_.add_messages();
    message->set_role(v1::ROLE_USER);
    message->set_content(std::string("say ") + kAnswer);
  }

  struct Answer {
    grpc::Status status;
    std::string text, reasoning;
    std::vector<v1::ToolCallDelta> calls;
    int logprobs = 0;
    v1::Final final;
  };
  Answer Run() {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + testing::kPatience);
    const auto reader = inference_->Chat(&context, request_);
    Answer answer;
    v1::ChatResponse response;
    while (reader->Read(&response)) {
      answer.text += response.delta();
      answer.reasoning += response.reasoning();
      for (const auto& call : response.tool_calls()) {
        answer.calls.push_back(call);
      }
      answer.logprobs += response.logprobs_size();
      if (response.has_final()) answer.final = response.final();
    }
    answer.status = reader->Finish();
    return answer;
  }

  Metrics metrics_;
  testing::FakeCore core_;
  std::unique_ptr<Authenticator> auth_;
  std::unique_ptr<Frontend> frontend_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<v1::Inference::Stub> inference_;
  v1::ChatRequest request_;
};

TEST_F(RpcToolsTest, AnAnswerIsTextWhereNobodyAsks) {
  const Answer answer = Run();
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, kAnswer);
  EXPECT_EQ(answer.reasoning, "");
  EXPECT_TRUE(answer.calls.empty());
  EXPECT_EQ(answer.final.finish_reason(), v1::FINISH_REASON_END);
}

TEST_F(RpcToolsTest, WhatIsThoughtComesApartWhereItIsAskedFor) {
  request_.set_split_reasoning(true);
  const Answer answer = Run();
  EXPECT_EQ(answer.reasoning, "hm");
  EXPECT_THAT(answer.text, StartsWith("Well.\n<tool_call>"));
  EXPECT_TRUE(answer.calls.empty());
  EXPECT_EQ(answer.final.finish_reason(), v1::FINISH_REASON_END);
}

TEST_F(RpcToolsTest, CallsComeApartWhereThereAreTools) {
  request_.add_tools()->set_name("f");
  request_.mutable_params()->set_logprobs(1);
  const Answer answer = Run();
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.reasoning, "hm");
  EXPECT_EQ(answer.text, "Well.");
  ASSERT_FALSE(answer.calls.empty());
  EXPECT_EQ(answer.calls[0].name(), "f");
  EXPECT_THAT(answer.calls[0].id(), StartsWith("call_"));
  std::string arguments;
  for (const v1::ToolCallDelta& call : answer.calls) {
    EXPECT_EQ(call.index(), 0u);
    arguments += call.arguments();
  }
  EXPECT_EQ(arguments, "{\"a\": \"}\"}");
  EXPECT_EQ(answer.final.finish_reason(), v1::FINISH_REASON_TOOL_CALLS);
  // Tokens are all there, whatever they are of.
  EXPECT_EQ(answer.logprobs, static_cast<int>(sizeof(kAnswer)) - 1);
}

TEST_F(RpcToolsTest, WhatOnlyBeginsACallIsText) {
  request_.add_tools()->set_name("f");
  request_.mutable_messages(0)->set_content("say no call <tool_c");
  const Answer answer = Run();
  EXPECT_EQ(answer.text, "no call <tool_c");
  EXPECT_TRUE(answer.calls.empty());
  EXPECT_EQ(answer.final.finish_reason(), v1::FINISH_REASON_END);
}

TEST_F(RpcToolsTest, ToolsThatAreWrongAreRefusedAndCounted) {
  request_.add_tools()->set_name("a b");
  const Answer answer = Run();
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("tools[0].name"));
  EXPECT_EQ(
      metrics_.requests(Method::kChat, absl::StatusCode::kInvalidArgument), 1u);
}

}  // namespace
}  // namespace xcache
