// Runs the real `xcache` program against a fake server: through pipes, as a
// script does, and on a pseudo-terminal, as a person does.
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "fake_service.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace xcache::client {
namespace {

using nlohmann::json;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

struct Result {
  int code = -1;
  std::string out;
  std::string err;
};

std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<char*> Argv(std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  return argv;
}

class CommandTest : public ::testing::Test {
 protected:
  CommandTest() {
    std::string folder = ::testing::TempDir() + "/xcache-command-XXXXXX";
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    setenv("XDG_STATE_HOME", folder_.c_str(), 1);
    unsetenv("XCACHE_TOKEN");
    setenv("XCACHE_ADDRESS", service_.address().c_str(), 1);
    setenv("TERM", "xterm", 1);
    unsetenv("NO_COLOR");
  }
  ~CommandTest() override { std::filesystem::remove_all(folder_); }

  std::vector<std::string> Words(std::vector<std::string> args) {
    const char* program = std::getenv("XCACHE_COMMAND");
    EXPECT_NE(program, nullptr);
    args.insert(args.begin(), program == nullptr ? "" : program);
    return args;
  }

  Result Run(const std::vector<std::string>& args,
             const std::string& input = "") {
    const std::string in = folder_ + "/in";
    const std::string out = folder_ + "/out";
    const std::string err = folder_ + "/err";
    std::ofstream(in, std::ios::binary) << input;
    std::vector<std::string> words = Words(args);
    const std::vector<char*> argv = Argv(words);
    const pid_t pid = fork();
    if (pid == 0) {
      dup2(open(in.c_str(), O_RDONLY), 0);
      dup2(open(out.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600), 1);
      dup2(open(err.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600), 2);
      execv(argv[0], argv.data());
      _exit(127);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, ReadAll(out),
            ReadAll(err)};
  }

  FakeService service_;
  std::string folder_;
};

TEST_F(CommandTest, AskPrintsTheAnswerAlone) {
  const Result result = Run({"ask", "hello", "there"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, "You said: hello there\n");
  EXPECT_EQ(result.err, "");
}

TEST_F(CommandTest, AskReadsStdin) {
  EXPECT_EQ(Run({"ask", "sum up:", "-"}, "a text").out,
            "You said: sum up: a text\n");
  EXPECT_EQ(Run({"ask", "-"}, "").code, 2);
}

TEST_F(CommandTest, AskPassesItsFlags) {
  const Result result =
      Run({"ask", "--json", "--seed", "7", "--temperature", "0", "-n", "5",
           "--stop", "x", "--stop", "y", "--no-cache", "--logprobs", "1",
           "--system", "be brief", "hi"});
  ASSERT_EQ(result.code, 0) << result.err;
  const json answer = json::parse(result.out);
  EXPECT_EQ(answer["text"], "You said: be brief hi");
  EXPECT_EQ(answer["reused_tokens"], 64);
  EXPECT_EQ(answer["reused"]["disk"], 64);
  EXPECT_EQ(answer["seed"], 7);
  EXPECT_EQ(answer["tokens"].size(), 5U);
  const v1::ChatRequest sent = service_.last_chat();
  EXPECT_EQ(sent.params().max_tokens(), 5U);
  EXPECT_EQ(sent.params().sampling().temperature(), 0.0F);
  EXPECT_EQ(sent.params().stop_size(), 2);
  EXPECT_TRUE(sent.params().no_cache());
  EXPECT_EQ(sent.messages(0).role(), v1::ROLE_SYSTEM);
}

TEST_F(CommandTest, ErrorsAreOneLineAndACode) {
  const Result result = Run({"sessions", "show", "nobody"});
  EXPECT_EQ(result.code, 4);
  EXPECT_EQ(result.err, "error: no session nobody\n");
  EXPECT_EQ(result.out, "");
  const Result as_json = Run({"--json", "sessions", "show", "nobody"});
  EXPECT_EQ(as_json.code, 4);
  EXPECT_EQ(json::parse(as_json.out)["error"]["code"], "NOT_FOUND");
  EXPECT_EQ(Run({"frobnicate"}).code, 2);
  EXPECT_EQ(Run({"ask", "--temperature", "warm", "hi"}).code, 2);
  EXPECT_EQ(Run({"--help"}).code, 0);
}

TEST_F(CommandTest, NobodyThereFailsAtOnce) {
  std::vector<std::string> args = {"--address", "127.0.0.1:1", "info"};
  const Result result = Run(args);
  EXPECT_EQ(result.code, 3);
  EXPECT_THAT(result.err, HasSubstr("no server answers at 127.0.0.1:1"));
}

TEST_F(CommandTest, WaitsWhileTheModelLoads) {
  service_.SetServing(false);
  const Result late = Run({"--wait", "0.3", "info"});
  EXPECT_EQ(late.code, 3);
  EXPECT_THAT(late.err,
              HasSubstr("is making a profile [########------------]  42 %"));
  EXPECT_THAT(late.err, HasSubstr("not ready after"));
}

TEST_F(CommandTest, InfoForPeopleAndScripts) {
  EXPECT_THAT(Run({"info"}).out, HasSubstr("6000 bytes a token, FP16 K/V "
                                           "23040: 3.84x"));
  const json info = json::parse(Run({"info", "--json"}).out);
  EXPECT_EQ(info["codec"], "xquant-gqa:bits=4");
  EXPECT_EQ(info["context_length"], 8192);
}

TEST_F(CommandTest, SessionsCommands) {
  EXPECT_EQ(Run({"chat", "--session", "one", "--title", "first"}, "hi\n").out,
            "You said: hi\n");
  const json list = json::parse(Run({"sessions", "list", "--json"}).out);
  ASSERT_EQ(list["sessions"].size(), 1U);
  EXPECT_EQ(list["sessions"][0]["title"], "first");
  EXPECT_THAT(Run({"sessions", "list"}).out, ContainsRegex("one +1 "));
  EXPECT_THAT(Run({"sessions", "show", "one"}).out,
              HasSubstr("assistant:\nYou said: hi\n"));
  EXPECT_THAT(Run({"sessions", "show", "--no-messages", "one"}).out,
              Not(HasSubstr("assistant:")));
  const json fork = json::parse(
      Run({"--json", "sessions", "fork", "one", "two", "-m", "1"}).out);
  EXPECT_EQ(fork["id"], "two");
  EXPECT_EQ(fork["num_messages"], 1);
  EXPECT_THAT(Run({"sessions", "pin", "two"}).out, HasSubstr("pinned"));
  EXPECT_THAT(Run({"sessions", "unpin", "two"}).out, Not(HasSubstr("pinned")));
  EXPECT_THAT(Run({"sessions", "flush", "two"}).out,
              HasSubstr("3 pages written, 4.0 KiB"));
  EXPECT_EQ(Run({"sessions", "rm", "one", "two"}).code, 0);
  EXPECT_EQ(Run({"sessions", "rm", "one"}).code, 4);
  EXPECT_EQ(Run({"sessions", "list"}).err, "no sessions\n");
}

TEST_F(CommandTest, ListFollowsThePages) {
  for (int i = 0; i < 60; ++i) {
    ASSERT_EQ(Run({"chat", "--session", "s" + std::to_string(i)}).code, 0);
  }
  const auto count = [&](std::vector<std::string> args) {
    return json::parse(Run(args).out)["sessions"].size();
  };
  EXPECT_EQ(count({"--json", "sessions", "list"}), 60U);
  EXPECT_EQ(count({"--json", "sessions", "list", "--limit", "55"}), 55U);
}

TEST_F(CommandTest, ChatFromAPipe) {
  const Result result =
      Run({"chat", "--session", "p"}, "one\ntwo \\\nlines\nlast");
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out,
            "You said: one\nYou said: two \nlines\nYou said: last\n");
  // Each turn says which one it is.
  EXPECT_EQ(service_.last_chat().expected_turn(), 2U);
}

TEST_F(CommandTest, ChatAsJsonLines) {
  const Result result = Run({"--json", "chat", "--session", "p"}, "one\n");
  std::vector<json> lines;
  for (size_t at = 0; at < result.out.size();) {
    const size_t end = result.out.find('\n', at);
    lines.push_back(json::parse(result.out.substr(at, end - at)));
    at = end + 1;
  }
  ASSERT_EQ(lines.size(), 5U);
  EXPECT_EQ(lines[0]["session"]["id"], "p");
  EXPECT_EQ(lines[1]["delta"], "You ");
  EXPECT_EQ(lines[4]["final"]["turn"], 1);
}

TEST_F(CommandTest, TheTokenComesFromTheEnvironment) {
  FakeService guarded({.token = "secret", .serving = true});
  EXPECT_EQ(Run({"-a", guarded.address(), "info"}).code, 5);
  setenv("XCACHE_TOKEN", "secret", 1);
  EXPECT_EQ(Run({"-a", guarded.address(), "info"}).code, 0);
  unsetenv("XCACHE_TOKEN");
}

// The program on a pseudo-terminal.
class Terminal {
 public:
  explicit Terminal(std::vector<std::string> words) {
    const std::vector<char*> argv = Argv(words);
    const winsize size{24, 80, 0, 0};
    pid_ = forkpty(&fd_, nullptr, nullptr, &size);
    if (pid_ == 0) {
      execv(argv[0], argv.data());
      _exit(127);
    }
  }
  ~Terminal() {
    if (!waited_) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    close(fd_);
  }

  void Type(const std::string& keys) {
    ASSERT_EQ(write(fd_, keys.data(), keys.size()),
              static_cast<ssize_t>(keys.size()));
  }
  // Waits until the screen has got `text` since the last Expect().
  bool Expect(const std::string& text) {
    const auto deadline =
        std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (std::chrono::steady_clock::now() < deadline) {
      if (const size_t at = seen_.find(text); at != std::string::npos) {
        seen_.erase(0, at + text.size());
        return true;
      }
      if (!More()) return seen_.find(text) != std::string::npos;
    }
    return false;
  }
  int Wait() {
    while (More()) {
    }
    int status = 0;
    // The pseudo-terminal closes when the program ends; where it did not end
    // More() has waited long enough.
    for (int i = 0; waitpid(pid_, &status, WNOHANG) == 0; ++i) {
      if (i == 500) return -1;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    waited_ = true;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  const std::string& seen() const { return seen_; }
  const std::string& all() const { return all_; }

 private:
  bool More() {
    pollfd fd{fd_, POLLIN, 0};
    if (poll(&fd, 1, 20000) <= 0) return false;
    std::array<char, 4096> bytes;
    const ssize_t n = read(fd_, bytes.data(), bytes.size());
    if (n <= 0) return false;
    seen_.append(bytes.data(), static_cast<size_t>(n));
    all_.append(bytes.data(), static_cast<size_t>(n));
    return true;
  }
  int fd_ = -1;
  pid_t pid_ = -1;
  bool waited_ = false;
  std::string seen_;
  std::string all_;
};

constexpr char kCtrlC[] = "\x03";
constexpr char kCtrlD[] = "\x04";
constexpr char kUp[] = "\x1b[A";
// The prompt: from here on keys go to the line editor, not to the terminal's
// own line buffer.
constexpr char kPrompt[] = ">\x1b[0m ";

TEST_F(CommandTest, CtrlCCancelsTheAnswerAndNotTheChat) {
  Terminal terminal(Words({"chat", "--session", "t"}));
  ASSERT_TRUE(terminal.Expect("new session t")) << terminal.all();
  service_.set_hang(true);
  terminal.Type("first\n");
  ASSERT_TRUE(terminal.Expect("You ")) << terminal.all();
  terminal.Type(kCtrlC);
  ASSERT_TRUE(terminal.Expect("cancelled; the session stays at turn 0"))
      << terminal.all();
  // The server sees it a moment later than the client says so.
  for (int i = 0; i < 1000 && service_.cancelled() == 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  ASSERT_EQ(service_.cancelled(), 1);
  service_.set_hang(false);
  terminal.Type("second\n");
  ASSERT_TRUE(terminal.Expect("You said: second")) << terminal.all();
  ASSERT_TRUE(terminal.Expect("reused 64 (disk pages)")) << terminal.all();
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  EXPECT_EQ(service_.last_chat().expected_turn(), 0U);
  // One at the prompt only warns.
  terminal.Type(std::string("half a line") + kCtrlC);
  ASSERT_TRUE(terminal.Expect("Ctrl-C again")) << terminal.all();
  terminal.Type("third\n");
  ASSERT_TRUE(terminal.Expect("You said: third")) << terminal.all();
  ASSERT_TRUE(terminal.Expect("first after")) << terminal.all();
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  terminal.Type(kCtrlC);
  ASSERT_TRUE(terminal.Expect("Ctrl-C again")) << terminal.all();
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  terminal.Type(kCtrlC);
  EXPECT_TRUE(terminal.Expect("session kept: xcache chat --session t"))
      << terminal.all();
  EXPECT_EQ(terminal.Wait(), 0);
}

TEST_F(CommandTest, LinesCanBeEditedAndRecalled) {
  {
    Terminal terminal(Words({"chat", "--session", "t"}));
    ASSERT_TRUE(terminal.Expect("new session t")) << terminal.all();
    terminal.Type("helloo\x7f w\xC3\xB6rld\n");
    ASSERT_TRUE(terminal.Expect("You said: hello w\xC3\xB6rld"))
        << terminal.all();
    // Not waiting for the prompt: what is typed early is not lost.
    terminal.Type(kCtrlD);
    EXPECT_EQ(terminal.Wait(), 0);
  }
  Terminal terminal(Words({"chat", "--session", "t"}));
  ASSERT_TRUE(terminal.Expect("session t: 1 turn")) << terminal.all();
  ASSERT_TRUE(terminal.Expect("You said: hello")) << terminal.all();
  ASSERT_TRUE(terminal.Expect(kPrompt)) << terminal.all();
  terminal.Type(std::string(kUp) + "!\n");
  ASSERT_TRUE(terminal.Expect("You said: hello w\xC3\xB6rld!"))
      << terminal.all();
  terminal.Type("/fork 1\n");
  ASSERT_TRUE(terminal.Expect("now in made-1, 1 messages")) << terminal.all();
  terminal.Type("/nonsense\n");
  ASSERT_TRUE(terminal.Expect("no command /nonsense")) << terminal.all();
  terminal.Type("/quit\n");
  EXPECT_EQ(terminal.Wait(), 0);
}

TEST_F(CommandTest, ColourOnlyWhereItIsWanted) {
  {
    Terminal terminal(Words({"ask", "hi"}));
    EXPECT_EQ(terminal.Wait(), 0);
    EXPECT_THAT(terminal.all(), HasSubstr("\x1b[2m"));
  }
  setenv("NO_COLOR", "1", 1);
  Terminal terminal(Words({"ask", "hi"}));
  EXPECT_EQ(terminal.Wait(), 0);
  EXPECT_THAT(terminal.all(), HasSubstr("You said: hi"));
  EXPECT_THAT(terminal.all(), Not(HasSubstr("\x1b[")));
  unsetenv("NO_COLOR");
}

TEST_F(CommandTest, CtrlCDuringAskExitsWith130) {
  service_.set_hang(true);
  Terminal terminal(Words({"ask", "hi"}));
  ASSERT_TRUE(terminal.Expect("You ")) << terminal.all();
  terminal.Type(kCtrlC);
  EXPECT_EQ(terminal.Wait(), 130) << terminal.all();
}

}  // namespace
}  // namespace xcache::client
