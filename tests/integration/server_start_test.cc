// Bad starts: each is one status, whose message a user can act on.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "gmock/gmock.h"
#include "tests/integration/app_fixture.h"
#include "tests/support/tiny_model.h"

namespace xcache::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class ServerStartTest : public AppFixture {
 protected:
  // Starts and gives the error; empty where it starts.
  std::string Error() {
    auto app = ServerApp::Listen(config_);
    absl::Status status = app.status();
    if (status.ok()) status = (*app)->Load();
    const std::string message(status.message());
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    return message;
  }
  std::string ReadModel() const {
    std::ifstream in(config_.model_path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void WriteModel(const std::string& bytes) {
    config_.model_path = folder_.path() + "/bad.gguf";
    std::ofstream(config_.model_path, std::ios::binary) << bytes;
  }
};

TEST_F(ServerStartTest, GoodOptionsStart) { EXPECT_EQ(Error(), ""); }

TEST_F(ServerStartTest, NoModelFile) {
  config_.model_path = "/no/such.gguf";
  EXPECT_THAT(Error(), HasSubstr("/no/such.gguf"));
}

TEST_F(ServerStartTest, NotAModel) {
  WriteModel("This is a text.\n");
  EXPECT_THAT(Error(), AllOf(HasSubstr("bad.gguf"), HasSubstr("GGUF")));
  config_.model_path = folder_.path();
  EXPECT_THAT(Error(), HasSubstr(folder_.path()));
}

TEST_F(ServerStartTest, ATruncatedModel) {
  const std::string bytes = ReadModel();
  for (size_t size :
       {size_t{3}, size_t{20}, bytes.size() / 2, bytes.size() - 1}) {
    WriteModel(bytes.substr(0, size));
    EXPECT_THAT(Error(), HasSubstr("bad.gguf")) << size;
  }
}

TEST_F(ServerStartTest, AnArchitectureThatIsNotKnown) {
  GgufWriter writer = TinyModelWriter(TinyModelOptions());
  writer.SetString("general.architecture", "mamba");
  WriteModel(writer.Finish());
  EXPECT_THAT(Error(), HasSubstr("mamba"));
}

TEST_F(ServerStartTest, ATemplateThatIsNotKnown) {
  config_.chat_template = "nonsense";
  EXPECT_THAT(Error(), AllOf(HasSubstr("nonsense"), HasSubstr("chatml")));
}

TEST_F(ServerStartTest, AModelWithoutATemplateNeedsAFlag) {
  GgufWriter writer = TinyModelWriter(TinyModelOptions());
  writer.Remove("tokenizer.chat_template");
  WriteModel(writer.Finish());
  EXPECT_THAT(Error(), HasSubstr("--chat-template"));
  config_.chat_template = "none";
  Start();
  const Answer answer = Chat(Turn("", "hello"));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  v1::GenerateRequest generate;
  generate.set_text("hello");
  generate.mutable_params()->set_max_tokens(3);
  EXPECT_TRUE(Generate(generate).status.ok());
}

TEST_F(ServerStartTest, ACodecThatIsNotKnown) {
  config_.codec = "zip:bits=4";
  EXPECT_THAT(Error(), AllOf(HasSubstr("zip"), HasSubstr("xquant-gqa")));
  config_.codec = "xquant-gqa:bits=5";
  EXPECT_THAT(Error(), HasSubstr("bits"));
}

TEST_F(ServerStartTest, AnInstructionSetThatIsNotKnown) {
  config_.isa = "sse9";
  EXPECT_THAT(Error(), HasSubstr("sse9"));
}

TEST_F(ServerStartTest, AStoreInUse) {
  Start();
  EXPECT_THAT(Error(), AllOf(HasSubstr(config_.store_dir), HasSubstr("use")));
  EXPECT_TRUE(Chat(Turn("", "still serving")).status.ok());
}

TEST_F(ServerStartTest, AStoreWhereNoneCanBe) {
  // A file is in the way: also root cannot make a folder there.
  config_.store_dir = config_.model_path + "/store";
  EXPECT_THAT(Error(), HasSubstr(config_.store_dir));
}

TEST_F(ServerStartTest, AProfileFolderWhereNoneCanBe) {
  config_.profile_dir = config_.model_path + "/profiles";
  EXPECT_THAT(Error(), AllOf(HasSubstr(config_.profile_dir),
                             HasSubstr("--profile-dir")));
}

TEST_F(ServerStartTest, PortsInUse) {
  Start();
  const std::string rpc = app_->address(), http = app_->metrics_address();
  config_.store_dir.clear();
  config_.profile_dir.clear();
  config_.listen = rpc;
  EXPECT_THAT(Error(), AllOf(HasSubstr(rpc), HasSubstr("--listen")));
  config_.listen = "127.0.0.1:0";
  config_.metrics_listen = http;
  EXPECT_THAT(Error(), AllOf(HasSubstr(http), HasSubstr("--metrics-listen")));
}

TEST_F(ServerStartTest, AnAddressOfAnotherMachine) {
  config_.listen = "192.0.2.1:50051";  // TEST-NET-1: nobody's
  EXPECT_THAT(Error(), HasSubstr("192.0.2.1:50051"));
}

TEST_F(ServerStartTest, BadTlsAndTokenFiles) {
  config_.tls_cert = config_.tls_key = config_.model_path;
  EXPECT_THAT(Error(), HasSubstr("--tls-cert"));
  config_.tls_cert = config_.tls_key = "";
  config_.token_file = "/no/tokens";
  EXPECT_THAT(Error(), HasSubstr("/no/tokens"));
}

TEST_F(ServerStartTest, TooLittleMemoryIsSaidWithTheLeastThatWorks) {
  config_.memory_bytes = 1 << 20;
  EXPECT_THAT(Error(), HasSubstr("memory"));
  config_.store_dir.clear();
  std::filesystem::create_directories(config_.profile_dir);
  config_.memory_bytes = 64 << 10;
  const std::string before = "expected at least ";
  // First for what clients send; then for all.
  for (int i = 0; i < 2; ++i) {
    const std::string error = Error();
    const size_t at = error.find(before);
    ASSERT_NE(at, std::string::npos) << error;
    config_.memory_bytes = std::stoull(error.substr(at + before.size()));
  }
  Start();
  const Answer answer = Chat(Turn("", "Say something.", 16));
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  Stop();
  // And it is the least, but for the shares that grow with the cap.
  config_.memory_bytes -= config_.memory_bytes / 4;
  EXPECT_THAT(Error(), HasSubstr(before));
}

}  // namespace
}  // namespace xcache::testing
