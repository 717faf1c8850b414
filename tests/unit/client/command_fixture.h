// Runs the real `xcache` program against a fake server: through pipes, as a
// script does, and on a pseudo-terminal, as a person does.
#ifndef XCACHE_TESTS_UNIT_CLIENT_COMMAND_FIXTURE_H_
#define XCACHE_TESTS_UNIT_CLIENT_COMMAND_FIXTURE_H_

#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fake_service.h"
#include "gtest/gtest.h"

namespace xcache::client {

struct Result {
  int code = -1;
  std::string out;
  std::string err;
};

inline std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline std::vector<char*> Argv(std::vector<std::string>& words) {
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
             const std::string& input = "", std::string out = "") {
    const std::string in = folder_ + "/in";
    const bool own_out = out.empty();
    if (own_out) out = folder_ + "/out";
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
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1,
            own_out ? ReadAll(out) : "", ReadAll(err)};
  }

  FakeService service_;
  std::string folder_;
};

// What listens and is no server of ours.
class Listener {
 public:
  // Each connection gets `answer` and is closed; empty: it is left open.
  explicit Listener(std::string answer) {
    fd_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(fd_, 16), 0);
    getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    if (answer.empty()) return;
    thread_ = std::thread([this, answer = std::move(answer)] {
      int connection = 0;
      while ((connection = accept(fd_, nullptr, nullptr)) >= 0) {
        std::array<char, 1024> sink;
        [[maybe_unused]] const ssize_t n =
            send(connection, answer.data(), answer.size(), MSG_NOSIGNAL);
        shutdown(connection, SHUT_WR);
        // All that the peer sends is read: closing before that would reset the
        // connection, and the peer might not see the answer.
        while (recv(connection, sink.data(), sink.size(), 0) > 0) {
        }
        close(connection);
      }
    });
  }
  ~Listener() {
    shutdown(fd_, SHUT_RDWR);
    if (thread_.joinable()) thread_.join();
    close(fd_);
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  int fd_ = -1;
  int port_ = 0;
  std::thread thread_;
};

// The program on a pseudo-terminal.
class Terminal {
 public:
  explicit Terminal(std::vector<std::string> words,
                    const winsize& size = {24, 80, 0, 0}) {
    const std::vector<char*> argv = Argv(words);
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

}  // namespace xcache::client

#endif  // XCACHE_TESTS_UNIT_CLIENT_COMMAND_FIXTURE_H_
