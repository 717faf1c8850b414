#include "server/frontend/listener.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/frontend/unique_fd.h"

namespace xcache {
namespace {

using std::chrono::milliseconds;

// Takes connections over as a front end does: closes those that have ended.
class Owner {
 public:
  void Take(int fd) {
    MutexLock lock(mu_);
    taken_.emplace_back(fd);
  }
  size_t taken() {
    MutexLock lock(mu_);
    return taken_.size();
  }
  void CloseEnded() {
    MutexLock lock(mu_);
    std::erase_if(taken_, [](const UniqueFd& fd) {
      char byte = 0;
      return recv(fd.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
    });
  }

 private:
  Mutex mu_;
  std::vector<UniqueFd> taken_ XC_GUARDED_BY(mu_);
};

class ListenerTest : public ::testing::Test {
 protected:
  void Start(int in_all, int per_peer, milliseconds grace) {
    ListenerOptions options;
    options.address = "127.0.0.1:0";
    options.max_connections = in_all;
    options.max_connections_per_peer = per_peer;
    options.grace = grace;
    listener_ = Listener::Bind(options).value();
    listener_->Start([this](int fd, const std::string&) { owner_.Take(fd); });
  }

  // From 127.0.0.`host`.
  UniqueFd Connect(int host) {
    UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in from{}, to{};
    from.sin_family = to.sin_family = AF_INET;
    from.sin_addr.s_addr = htonl(0x7F000000u + static_cast<uint32_t>(host));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const std::string& address = listener_->address();
    to.sin_port = htons(static_cast<uint16_t>(
        std::stoi(address.substr(address.rfind(':') + 1))));
    EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&from), sizeof(from)),
              0);
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)),
              0);
    return fd;
  }
  static std::string AddressOf(const UniqueFd& fd) {
    sockaddr_in own{};
    socklen_t size = sizeof(own);
    getsockname(fd.get(), reinterpret_cast<sockaddr*>(&own), &size);
    return std::string(inet_ntoa(own.sin_addr)) + ":" +
           std::to_string(ntohs(own.sin_port));
  }
  // Whether the server closed it within a moment.
  static bool IsClosed(const UniqueFd& fd) {
    const timeval moment{0, 300'000};
    setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &moment, sizeof(moment));
    char byte = 0;
    const ssize_t n = recv(fd.get(), &byte, 1, 0);
    return n == 0 || (n < 0 && errno == ECONNRESET);
  }

  Owner owner_;
  std::unique_ptr<Listener> listener_;
};

TEST_F(ListenerTest, HandsConnectionsOverAndForgetsThoseThatWereClosed) {
  Start(8, 8, milliseconds(0));
  {
    const UniqueFd one = Connect(1), two = Connect(2);
    EXPECT_FALSE(IsClosed(one));
    EXPECT_FALSE(IsClosed(two));
    EXPECT_EQ(listener_->stats().open, 2);
  }
  owner_.CloseEnded();
  EXPECT_EQ(owner_.taken(), 0u);
  EXPECT_EQ(listener_->stats().open, 0);
  EXPECT_EQ(listener_->stats().accepted, 2u);
}

TEST_F(ListenerTest, OnePeerCannotTakeAll) {
  Start(8, 2, milliseconds(60'000));
  const UniqueFd one = Connect(1), two = Connect(1), three = Connect(1);
  EXPECT_FALSE(IsClosed(one));
  EXPECT_FALSE(IsClosed(two));
  EXPECT_TRUE(IsClosed(three));
  EXPECT_FALSE(IsClosed(Connect(2)));
  EXPECT_EQ(listener_->stats().refused_per_peer, 1u);
}

TEST_F(ListenerTest, BeyondAllThatThereMayBeTheNewOneIsRefused) {
  Start(2, 2, milliseconds(60'000));
  const UniqueFd one = Connect(1), two = Connect(2), three = Connect(3);
  EXPECT_FALSE(IsClosed(one));
  EXPECT_FALSE(IsClosed(two));
  EXPECT_TRUE(IsClosed(three));
  EXPECT_EQ(listener_->stats().refused_total, 1u);
}

TEST_F(ListenerTest, WhoHasShownNoTokenGivesWay) {
  Start(2, 2, milliseconds(0));
  const UniqueFd trusted = Connect(1), silent = Connect(2);
  EXPECT_FALSE(IsClosed(trusted));
  listener_->MarkTrusted(AddressOf(trusted));
  const UniqueFd third = Connect(3);
  EXPECT_TRUE(IsClosed(silent));
  EXPECT_FALSE(IsClosed(trusted));
  EXPECT_FALSE(IsClosed(third));
  listener_->MarkTrusted(AddressOf(third));
  owner_.CloseEnded();
  // Now nobody gives way.
  EXPECT_TRUE(IsClosed(Connect(4)));
  EXPECT_EQ(listener_->stats().evicted, 1u);
  EXPECT_EQ(listener_->stats().refused_total, 1u);
}

TEST_F(ListenerTest, CutsOffOneOrAllThatAreUnknown) {
  Start(8, 8, milliseconds(60'000));
  const UniqueFd one = Connect(1), two = Connect(2), three = Connect(3);
  ASSERT_FALSE(IsClosed(three));
  EXPECT_FALSE(listener_->Close("1.2.3.4:5"));
  EXPECT_TRUE(listener_->Close(AddressOf(one)));
  EXPECT_TRUE(IsClosed(one));
  listener_->MarkTrusted(AddressOf(two));
  listener_->CloseUntrusted();
  const auto cut = std::chrono::steady_clock::now();
  EXPECT_TRUE(IsClosed(three));
  EXPECT_FALSE(IsClosed(two));
  EXPECT_EQ(listener_->stats().open, 1);
  EXPECT_EQ(listener_->stats().cut_off, 2u);
  // A new one is taken, when what they cost is worked off.
  EXPECT_FALSE(IsClosed(Connect(2)));
  EXPECT_GE(std::chrono::steady_clock::now() - cut, milliseconds(45));
}

TEST_F(ListenerTest, AcceptsAgainOnceOthersHaveClosed) {
  Start(2, 2, milliseconds(60'000));
  {
    const UniqueFd one = Connect(1), two = Connect(2);
    EXPECT_TRUE(IsClosed(Connect(3)));
  }
  owner_.CloseEnded();
  EXPECT_FALSE(IsClosed(Connect(3)));
}

TEST_F(ListenerTest, AddressesThatCannotBeHadAreNamed) {
  Start(2, 2, milliseconds(0));
  ListenerOptions options;
  for (const std::string& address :
       {listener_->address(), std::string("192.0.2.1:0"),
        std::string("no.such.host.invalid:1")}) {
    options.address = address;
    const auto taken = Listener::Bind(options);
    EXPECT_EQ(taken.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(taken.status().message()),
                ::testing::HasSubstr(address));
  }
}

TEST_F(ListenerTest, AStoppedOneLetsThePortGo) {
  Start(2, 2, milliseconds(0));
  ListenerOptions options;
  options.address = listener_->address();
  listener_->Stop();
  EXPECT_TRUE(Listener::Bind(options).ok());
}

}  // namespace
}  // namespace xcache
