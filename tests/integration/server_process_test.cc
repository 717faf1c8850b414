// The program itself: flags, the lines it writes, signals, exit codes.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "tests/integration/app_fixture.h"
#include "tests/unit/server/grpc/test_certificates.h"

extern char** environ;

namespace xcache::testing {
namespace {

using ::testing::HasSubstr;

std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class ServerProcessTest : public AppFixture {
 protected:
  ~ServerProcessTest() override {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
  }

  // Runs the program; its output goes to out_ and err_.
  void Run(std::vector<std::string> arguments) {
    const char* build = std::getenv("XCACHE_BUILD");
    ASSERT_NE(build, nullptr);
    arguments.insert(arguments.begin(),
                     std::string(build) + "/bin/xcache-server");
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    constexpr int kFlags = O_WRONLY | O_CREAT | O_TRUNC;
    posix_spawn_file_actions_addopen(&actions, 1, out_.c_str(), kFlags, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, err_.c_str(), kFlags, 0600);
    ASSERT_EQ(
        posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ),
        0);
    posix_spawn_file_actions_destroy(&actions);
  }
  // Runs it as a server with the fixture's options and connects.
  void RunServer(std::vector<std::string> more = {}) {
    std::vector<std::string> arguments = {
        "--model",          config_.model_path,
        "--listen",         "127.0.0.1:0",
        "--metrics-listen", "127.0.0.1:0",
        "--store-dir",      config_.store_dir,
        "--memory-bytes",   "256MiB",
        "--threads",        "2",
        "--ready-file",     ready_};
    arguments.insert(arguments.end(), more.begin(), more.end());
    Run(arguments);
    ASSERT_TRUE(Eventually([&] { return access(ready_.c_str(), F_OK) == 0; }))
        << ReadAll(err_);
    const std::string ready = ReadAll(ready_);
    const std::string key = "\"listen\":\"";
    const size_t at = ready.find(key) + key.size();
    const std::string address = ready.substr(at, ready.find('"', at) - at);
    channel_ = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
    inference_ = v1::Inference::NewStub(channel_);
    sessions_ = v1::Sessions::NewStub(channel_);
  }
  // Its exit code; -signal where one ended it; -1000 where it does not end.
  int Exit() {
    int status = 0;
    if (!Eventually([&] { return waitpid(pid_, &status, WNOHANG) == pid_; })) {
      return -1000;
    }
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  std::string LastLine() const {
    std::string text = ReadAll(err_);
    while (!text.empty() && text.back() == '\n') text.pop_back();
    return text.substr(text.rfind('\n') + 1);
  }

  const std::string out_ = folder_.path() + "/out";
  const std::string err_ = folder_.path() + "/err";
  const std::string ready_ = folder_.path() + "/ready";
  pid_t pid_ = 0;
};

TEST_F(ServerProcessTest, VersionAndHelpExitWithZero) {
  Run({"--version"});
  EXPECT_EQ(Exit(), 0);
  EXPECT_THAT(ReadAll(out_), HasSubstr("xcache-server"));
  Run({"--help"});
  EXPECT_EQ(Exit(), 0);
  EXPECT_THAT(ReadAll(out_), HasSubstr("--store-dir"));
}

TEST_F(ServerProcessTest, ABadFlagIsOneLineAndExitCodeTwo) {
  Run({"--model", "m", "--nonsense"});
  EXPECT_EQ(Exit(), 2);
  const std::string err = ReadAll(err_);
  EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
  EXPECT_THAT(err, HasSubstr("--nonsense"));
}

TEST_F(ServerProcessTest, ABadStartIsOneLineAndExitCodeOne) {
  Run({"--model", "/no/such.gguf", "--listen", "127.0.0.1:0",
       "--metrics-listen", "none", "--store-dir", "none"});
  EXPECT_EQ(Exit(), 1);
  const std::string err = ReadAll(err_);
  EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
  EXPECT_THAT(err, HasSubstr("xcache-server: "));
  EXPECT_THAT(err, HasSubstr("/no/such.gguf"));
}

TEST_F(ServerProcessTest, SigtermDrainsAndExitsWithZero) {
  RunServer();
  ASSERT_TRUE(CreateSession("s").ok());
  const auto context = Context();
  const auto running = inference_->Chat(context.get(), Turn("s", "run", 300));
  v1::ChatResponse response;
  ASSERT_TRUE(running->Read(&response));
  kill(pid_, SIGTERM);
  bool has_final = false;
  while (running->Read(&response)) has_final = response.has_final();
  EXPECT_TRUE(running->Finish().ok());
  EXPECT_TRUE(has_final);
  EXPECT_EQ(Exit(), 0);
  EXPECT_NE(access(ready_.c_str(), F_OK), 0);
  EXPECT_THAT(LastLine(), HasSubstr("turns_cut_short=0"));
}

TEST_F(ServerProcessTest, DrainingEndsAtItsLimit) {
  RunServer({"--drain-seconds", "0"});
  const auto context = Context();
  const auto running =
      inference_->Chat(context.get(), Turn("", "run", kEndlessTokens));
  v1::ChatResponse response;
  ASSERT_TRUE(running->Read(&response));
  kill(pid_, SIGTERM);
  while (running->Read(&response)) {
  }
  EXPECT_EQ(running->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Exit(), 0);
}

TEST_F(ServerProcessTest, SigtermWhileLoadingExitsWithZero) {
  // A pipe in the place of the model: opening it does not end by itself.
  const std::string pipe = folder_.path() + "/pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  Run({"--model", pipe, "--listen", "127.0.0.1:0", "--metrics-listen", "none",
       "--store-dir", "none"});
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  if (waitpid(pid_, nullptr, WNOHANG) == pid_) {
    pid_ = 0;
    GTEST_SKIP() << "the model reader refuses a pipe before it can block";
  }
  kill(pid_, SIGTERM);
  EXPECT_EQ(Exit(), 0);
}

TEST_F(ServerProcessTest, KilledAtAnyTimeTheSessionGoesOn) {
  RunServer();
  ASSERT_TRUE(CreateSession("s").ok());
  ASSERT_TRUE(Chat(Turn("s", "remember this")).status.ok());
  kill(pid_, SIGKILL);
  EXPECT_EQ(Exit(), -SIGKILL);
  std::remove(ready_.c_str());
  RunServer();
  v1::ChatRequest next = Turn("s", "and this");
  next.set_expected_turn(1);
  const Answer answer = Chat(next);
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.final.turn(), 2u);
}

TEST_F(ServerProcessTest, SighupReadsTheTokensAgain) {
  const std::string tokens = WriteTestFile("tokens", "old alice\n");
  RunServer({"--token-file", tokens});
  token_ = "old";
  ASSERT_TRUE(CreateSession("s").ok());
  WriteTestFile("tokens", "new alice\n");
  kill(pid_, SIGHUP);
  token_ = "new";
  v1::Session session;
  EXPECT_TRUE(Eventually([&] { return GetSession("s", &session).ok(); }));
  token_ = "old";
  EXPECT_EQ(GetSession("s", &session).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
}

}  // namespace
}  // namespace xcache::testing
