// Against a server that does as the test says.
#include "cachestore/shared/http_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "tests/support/http_peer.h"

namespace xcache {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::HasSubstr;
using Outcome = HttpAnswer::Outcome;
using Then = HttpPeer::Reply::Then;

class HttpClientTest : public testing::Test {
 protected:
  void Open(const HttpOptions& options = {}) {
    auto client = HttpClient::Create(options);
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }
  void Serve(HttpPeer::Handler handler) {
    peer_ = std::make_unique<HttpPeer>(std::move(handler));
  }
  HttpRequest Request(const std::string& method, const std::string& path,
                      milliseconds timeout = milliseconds(10000)) const {
    HttpRequest request;
    request.method = method;
    request.url = peer_->url() + path;
    request.deadline = steady_clock::now() + timeout;
    return request;
  }
  std::future<HttpAnswer> Start(HttpRequest request) {
    auto promise = std::make_shared<std::promise<HttpAnswer>>();
    client_->Start(std::move(request), [promise](HttpAnswer answer) {
      promise->set_value(std::move(answer));
    });
    return promise->get_future();
  }
  HttpAnswer Send(HttpRequest request) {
    return Start(std::move(request)).get();
  }

  std::unique_ptr<HttpPeer> peer_;
  std::shared_ptr<HttpClient> client_;
};

TEST_F(HttpClientTest, MethodPathHeadersAndBodyArrive) {
  std::promise<HttpPeer::Request> seen;
  Serve([&seen](const HttpPeer::Request& request) {
    seen.set_value(request);
    return HttpReply(200, "answer", {{"ETag", "\"e\""}});
  });
  Open();
  HttpRequest request = Request("PUT", "/a/../b%20c?x=1");
  request.headers = {{"x-one", "1"}};
  request.body = std::make_shared<const std::string>("body");
  const HttpAnswer answer = Send(std::move(request));
  EXPECT_EQ(answer.outcome, Outcome::kAnswered) << answer.error;
  EXPECT_EQ(answer.code, 200);
  EXPECT_EQ(answer.body, "answer");
  EXPECT_EQ(answer.Header("etag"), "\"e\"");
  EXPECT_EQ(answer.Header("none"), "");
  EXPECT_TRUE(answer.is_whole_for_sure);
  const HttpPeer::Request got = seen.get_future().get();
  EXPECT_EQ(got.method, "PUT");
  EXPECT_EQ(got.target, "/a/../b%20c?x=1");
  EXPECT_EQ(got.headers.at("x-one"), "1");
  EXPECT_EQ(got.headers.count("expect"), 0u);
  EXPECT_EQ(got.headers.count("transfer-encoding"), 0u);
  EXPECT_EQ(got.body, "body");
}

TEST_F(HttpClientTest, EachMethodIsSentAsItIs) {
  Serve([](const HttpPeer::Request& request) {
    HttpPeer::Reply reply = HttpReply(200, request.method);
    if (request.method == "HEAD") reply.bytes.resize(reply.bytes.size() - 4);
    return reply;
  });
  Open();
  for (const char* method : {"GET", "DELETE", "PUT", "POST", "HEAD"}) {
    HttpRequest request = Request(method, "/");
    if (method[0] == 'P') {
      request.body = std::make_shared<const std::string>();
    }
    const HttpAnswer answer = Send(std::move(request));
    EXPECT_EQ(answer.outcome, Outcome::kAnswered) << answer.error;
    EXPECT_EQ(answer.body, std::string_view(method) == "HEAD" ? "" : method);
  }
}

TEST_F(HttpClientTest, AConnectionIsKept) {
  Serve([](const HttpPeer::Request&) { return HttpReply(200, "x"); });
  Open();
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(Send(Request("GET", "/")).code, 200);
  }
  EXPECT_EQ(peer_->num_connections(), 1);
}

TEST_F(HttpClientTest, MoreRequestsThanConnectionsWaitTheirTurn) {
  std::atomic<int> now{0}, most{0};
  Serve([&](const HttpPeer::Request&) {
    const int running = ++now;
    int seen = most;
    while (running > seen && !most.compare_exchange_weak(seen, running)) {
    }
    std::this_thread::sleep_for(milliseconds(2));
    --now;
    return HttpReply(200, "x");
  });
  Open({.max_connections = 3});
  std::vector<std::future<HttpAnswer>> answers;
  for (int i = 0; i < 100; ++i) answers.push_back(Start(Request("GET", "/")));
  for (auto& answer : answers) EXPECT_EQ(answer.get().code, 200);
  EXPECT_EQ(most, 3);
  EXPECT_EQ(peer_->num_connections(), 3);
  EXPECT_EQ(client_->stats().queued, 0);
  EXPECT_EQ(client_->stats().running, 0);
  EXPECT_EQ(client_->stats().received_bytes, 100);
}

TEST_F(HttpClientTest, ARequestThatWaitsForAConnectionHasItsDeadline) {
  Serve([](const HttpPeer::Request&) {
    return HttpPeer::Reply{.bytes = HttpBytes(200, "x"),
                           .then = Then::kKeep,
                           .wait = milliseconds(1500)};
  });
  Open({.max_connections = 1});
  auto first = Start(Request("GET", "/"));
  const HttpAnswer second = Send(Request("GET", "/", milliseconds(100)));
  EXPECT_EQ(second.outcome, Outcome::kTimedOut);
  EXPECT_THAT(second.error, HasSubstr("no connection was free"));
  EXPECT_EQ(first.get().code, 200);
}

TEST_F(HttpClientTest, ADeadlineHoldsWhateverTheServerDoes) {
  Serve([](const HttpPeer::Request&) {
    return HttpPeer::Reply{
        .bytes = "", .then = Then::kClose, .wait = milliseconds(20000)};
  });
  Open();
  const auto start = steady_clock::now();
  const HttpAnswer answer = Send(Request("GET", "/", milliseconds(150)));
  const auto took = steady_clock::now() - start;
  EXPECT_EQ(answer.outcome, Outcome::kTimedOut);
  EXPECT_GE(took, milliseconds(150));
  EXPECT_LT(took, milliseconds(10000));
}

TEST_F(HttpClientTest, WhereNoByteMovesTheTryIsLost) {
  Serve([](const HttpPeer::Request&) {
    return HttpPeer::Reply{
        .bytes = "", .then = Then::kClose, .wait = milliseconds(20000)};
  });
  Open({.stall_timeout = milliseconds(100)});
  const HttpAnswer answer = Send(Request("GET", "/"));
  EXPECT_EQ(answer.outcome, Outcome::kLost);
  EXPECT_THAT(answer.error, HasSubstr("nothing for 100 ms"));
}

TEST_F(HttpClientTest, ABodyShorterThanAnnouncedIsLost) {
  Serve([](const HttpPeer::Request& request) {
    const std::string whole = HttpBytes(200, std::string(100000, 'x'));
    return HttpPeer::Reply{
        .bytes = whole.substr(0, whole.size() - 1),
        .then = request.target == "/reset" ? Then::kReset : Then::kClose};
  });
  Open();
  for (const char* path : {"/close", "/reset"}) {
    HttpRequest request = Request("GET", path);
    request.max_answer_bytes = 200000;
    const HttpAnswer answer = Send(std::move(request));
    EXPECT_EQ(answer.outcome, Outcome::kLost) << path;
    EXPECT_EQ(answer.body, "");
    EXPECT_NE(answer.error, "");
  }
}

TEST_F(HttpClientTest, ABodyOfNoAnnouncedLengthMayBeHalf) {
  Serve([](const HttpPeer::Request&) {
    return HttpPeer::Reply{.bytes = "HTTP/1.1 200 OK\r\n\r\nhalf",
                           .then = Then::kClose};
  });
  Open();
  const HttpAnswer answer = Send(Request("GET", "/"));
  EXPECT_EQ(answer.outcome, Outcome::kAnswered);
  EXPECT_FALSE(answer.is_whole_for_sure);
}

TEST_F(HttpClientTest, WhereNobodyListensNothingWasSent) {
  Serve([](const HttpPeer::Request&) { return HttpReply(200, ""); });
  HttpRequest request = Request("GET", "/");
  peer_.reset();
  Open();
  EXPECT_EQ(Send(request).outcome, Outcome::kNotSent);
  request.url = "http://name.invalid/";
  request.deadline = steady_clock::now() + milliseconds(5000);
  EXPECT_NE(Send(request).outcome, Outcome::kAnswered);
}

TEST_F(HttpClientTest, AnAnswerThatIsTooLargeIsRefused) {
  Serve([](const HttpPeer::Request& request) {
    if (request.target == "/announced") {
      return HttpPeer::Reply{
          .bytes = "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\nx"};
    }
    std::string bytes = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for (int i = 0; i < 100; ++i) {
      bytes += "400\r\n" + std::string(1024, 'x') + "\r\n";
    }
    return HttpPeer::Reply{.bytes = bytes + "0\r\n\r\n"};
  });
  Open();
  for (const char* path : {"/announced", "/chunked"}) {
    HttpRequest request = Request("GET", path);
    request.max_answer_bytes = 102399;
    EXPECT_EQ(Send(request).outcome, Outcome::kTooLarge) << path;
  }
  HttpRequest request = Request("GET", "/chunked");
  request.max_answer_bytes = 102400;
  const HttpAnswer answer = Send(request);
  EXPECT_EQ(answer.outcome, Outcome::kAnswered);
  EXPECT_EQ(answer.body.size(), 102400u);
}

TEST_F(HttpClientTest, OfAnErrorsBodyNoMoreIsKeptThanItNeeds) {
  Serve([](const HttpPeer::Request&) {
    return HttpReply(500, std::string(300000, 'x'));
  });
  Open();
  HttpRequest request = Request("GET", "/");
  request.max_answer_bytes = 10;
  const HttpAnswer answer = Send(request);
  EXPECT_EQ(answer.outcome, Outcome::kAnswered);
  EXPECT_EQ(answer.code, 500);
  EXPECT_EQ(answer.body.size(), size_t{64} << 10);
}

TEST_F(HttpClientTest, ARedirectionIsAnAnswer) {
  Serve([](const HttpPeer::Request&) {
    return HttpReply(307, "", {{"location", "http://127.0.0.1:1/"}});
  });
  Open();
  EXPECT_EQ(Send(Request("GET", "/")).code, 307);
}

TEST_F(HttpClientTest, ARequestOnADeadConnectionIsToldToBeSentTwice) {
  // The server takes the second request in and ends the connection, as one
  // that is restarted does.
  std::atomic<int> puts{0};
  Serve([&puts](const HttpPeer::Request& request) {
    if (request.method == "PUT" && ++puts == 1) {
      return HttpPeer::Reply{.bytes = "", .then = Then::kClose};
    }
    return HttpReply(200, "x");
  });
  Open({.max_connections = 1});
  EXPECT_EQ(Send(Request("GET", "/")).code, 200);
  HttpRequest request = Request("PUT", "/");
  request.body = std::make_shared<const std::string>("body");
  const HttpAnswer answer = Send(std::move(request));
  EXPECT_EQ(puts, 2);
  EXPECT_EQ(answer.code, 200) << answer.error;
  EXPECT_TRUE(answer.may_have_been_sent_before);
}

TEST_F(HttpClientTest, BytesASecondAreLimitedInBothDirectionsTogether) {
  Serve([](const HttpPeer::Request&) {
    return HttpReply(200, std::string(300000, 'x'));
  });
  Open({.max_connections = 4, .bytes_per_s = 1000000});
  const auto start = steady_clock::now();
  std::vector<std::future<HttpAnswer>> answers;
  for (int i = 0; i < 4; ++i) {
    HttpRequest request = Request(i % 2 == 0 ? "GET" : "PUT", "/");
    request.max_answer_bytes = 300000;
    if (i % 2 != 0) {
      request.body =
          std::make_shared<const std::string>(std::string(300000, 'y'));
    }
    answers.push_back(Start(std::move(request)));
  }
  for (auto& answer : answers) EXPECT_EQ(answer.get().body.size(), 300000u);
  const std::chrono::duration<double> took = steady_clock::now() - start;
  EXPECT_EQ(client_->stats().sent_bytes, 600000);
  EXPECT_EQ(client_->stats().received_bytes, 1200000);
  // 1.8 MB, of which a twentieth of a second's worth comes at once, and of each
  // transfer the last piece may be owed.
  EXPECT_GT(took.count(), 1.8 - 0.05 - 0.3);
  EXPECT_LT(took.count(), 1.8 * 10);
}

TEST_F(HttpClientTest, ALimitedTransferIsNotTakenForAStalledOne) {
  Serve([](const HttpPeer::Request&) {
    return HttpReply(200, std::string(60000, 'x'));
  });
  Open({.stall_timeout = milliseconds(100), .bytes_per_s = 60000});
  const HttpAnswer answer = Send(Request("GET", "/"));
  EXPECT_EQ(answer.outcome, Outcome::kAnswered) << answer.error;
  EXPECT_EQ(answer.body.size(), 60000u);
}

TEST_F(HttpClientTest, StopAnswersEverybody) {
  Serve([](const HttpPeer::Request&) {
    return HttpPeer::Reply{
        .bytes = "", .then = Then::kClose, .wait = milliseconds(20000)};
  });
  Open({.max_connections = 2});
  std::vector<std::future<HttpAnswer>> answers;
  for (int i = 0; i < 5; ++i) answers.push_back(Start(Request("GET", "/")));
  HttpRequest later = Request("GET", "/");
  later.not_before = steady_clock::now() + milliseconds(5000);
  answers.push_back(Start(later));
  std::promise<HttpAnswer> again;  // what a callback starts meanwhile
  client_->Start(Request("GET", "/"), [&](const HttpAnswer&) {
    client_->Start(Request("GET", "/"), [&again](HttpAnswer answer) {
      again.set_value(std::move(answer));
    });
  });
  client_->Stop();
  for (auto& answer : answers) {
    EXPECT_EQ(answer.get().outcome, Outcome::kCancelled);
  }
  EXPECT_EQ(again.get_future().get().outcome, Outcome::kCancelled);
  EXPECT_EQ(Send(Request("GET", "/")).outcome, Outcome::kCancelled);
}

TEST_F(HttpClientTest, CallsAtATime) {
  Open();
  const auto at = steady_clock::now() + milliseconds(50);
  std::promise<steady_clock::time_point> called;
  client_->CallAt(at, [&called] { called.set_value(steady_clock::now()); });
  const auto when = called.get_future().get();
  EXPECT_GE(when, at);
  EXPECT_LT(when, at + milliseconds(10000));
}

}  // namespace
}  // namespace xcache
