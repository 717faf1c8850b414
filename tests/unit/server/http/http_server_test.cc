// The HTTP front end, end to end over a real port, with a fake core behind it.
#include "server/http/http_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/frontend/request_bytes.h"
#include "server/frontend/unique_fd.h"
#include "server/http/exchange.h"
#include "server/http/openai_api.h"
#include "tests/unit/server/grpc/eventually.h"
#include "tests/unit/server/grpc/fake_core.h"
#include "tests/unit/server/grpc/test_certificates.h"

namespace xcache {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::Eventually;
using testing::FakeCore;
using ::testing::HasSubstr;
using testing::kPatience;
using ::testing::Not;
using ::testing::StartsWith;

// A connection, byte by byte.
class Peer {
 public:
  explicit Peer(const std::string& address, int receive_bytes = 0)
      : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    if (receive_bytes > 0) {
      setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUF, &receive_bytes,
                 sizeof(receive_bytes));
    }
    timeval patience{.tv_sec = 20, .tv_usec = 0};
    setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(static_cast<uint16_t>(
        std::stoi(address.substr(address.rfind(':') + 1))));
    EXPECT_EQ(connect(fd_.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)),
              0);
  }
  void Send(const std::string& bytes) {
    EXPECT_EQ(send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  // Up to the first `end`, with it; less where the stream ends.
  std::string ReadTo(const std::string& end) {
    while (read_.find(end) == std::string::npos && Read()) {
    }
    const size_t size = std::min(read_.find(end), read_.size());
    const std::string out = read_.substr(0, size + end.size());
    read_.erase(0, out.size());
    return out;
  }
  std::string ReadAll() {
    while (Read()) {
    }
    return std::exchange(read_, "");
  }
  // One answer with a length: its head, and its body in `body`.
  std::string ReadAnswer(std::string* body) {
    const std::string head = ReadTo("\r\n\r\n");
    const size_t at = head.find("Content-Length: ");
    if (at == std::string::npos) return head;
    const size_t size = std::stoul(head.substr(at + 16));
    while (read_.size() < size && Read()) {
    }
    *body = read_.substr(0, size);
    read_.erase(0, size);
    return head;
  }

 private:
  bool Read() {
    char bytes[4096];
    const ssize_t size = recv(fd_.get(), bytes, sizeof(bytes), 0);
    if (size <= 0) return false;
    read_.append(bytes, static_cast<size_t>(size));
    return true;
  }

  UniqueFd fd_;
  std::string read_;
};

std::string Post(const json& body, const std::string& headers = "",
                 const std::string& path = "/v1/chat/completions") {
  const std::string text = body.dump();
  return absl::StrCat("POST ", path,
                      " HTTP/1.1\r\nHost: x\r\n"
                      "Content-Type: application/json\r\n",
                      headers, "Content-Length: ", text.size(), "\r\n\r\n",
                      text);
}

json Chat(const std::string& command, json more = json::object()) {
  json body = {{"messages", {{{"role", "user"}, {"content", command}}}}};
  body.update(more);
  return body;
}

class HttpServerTest : public ::testing::Test {
 protected:
  ~HttpServerTest() override {
    if (server_ != nullptr) server_->Shutdown(steady_clock::now());
  }

  void Start(const std::string& token_file = "", bool open = true) {
    auth_ = Authenticator::Create(token_file).value();
    Frontend::Options front;
    front.metrics = &metrics_;
    front.auth = auth_.get();
    front.stream_limits = limits_;
    frontend_ = std::make_unique<Frontend>(front);
    if (open) frontend_->gate.Open(&core_);
    options_.listen.address = "127.0.0.1:0";
    options_.arriving_bytes = 4 << 20;
    options_.max_body_bytes = 1 << 20;
    options_.frontend = frontend_.get();
    OpenAiOptions api;
    api.model = "fake";
    api.ping = ping_;
    api.frontend = frontend_.get();
    auto server = HttpServer::Listen(options_, MakeOpenAiApi(api));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  // The head of one exchange on a connection of its own; its body in `body`.
  std::string Ask(const std::string& request, json* body) {
    Peer peer(server_->address());
    peer.Send(request);
    std::string text;
    const std::string head = peer.ReadAnswer(&text);
    *body = json::parse(text, nullptr, /*allow_exceptions=*/false);
    return head;
  }

  StreamLimits limits_;
  milliseconds ping_{15'000};
  HttpServerOptions options_;
  Metrics metrics_;
  std::unique_ptr<Authenticator> auth_;
  std::unique_ptr<Frontend> frontend_;
  std::unique_ptr<HttpServer> server_;
  FakeCore core_;  // goes first: its threads tell the others
};

TEST_F(HttpServerTest, AChatIsAnsweredWhole) {
  Start();
  json body;
  const std::string head =
      Ask(Post(Chat("say hello"), "x-request-id: r1\r\n"), &body);
  EXPECT_THAT(head, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(head, HasSubstr("x-request-id: r1\r\n"));
  EXPECT_EQ(body["choices"][0]["message"]["content"], "hello");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["usage"]["completion_tokens"], 5);
  EXPECT_EQ(body["usage"]["prompt_tokens_details"]["cached_tokens"], 64);
  EXPECT_EQ(body["model"], "fake");
  EXPECT_EQ(metrics_.requests(Method::kChatCompletions, absl::StatusCode::kOk),
            1u);
}

TEST_F(HttpServerTest, AConnectionServesManyRequests) {
  Start();
  Peer peer(server_->address());
  for (int i = 0; i < 20; ++i) {
    const bool streams = i % 2 == 0;
    peer.Send(Post(Chat(absl::StrCat("say ", i), {{"stream", streams}})));
    if (streams) {
      EXPECT_THAT(peer.ReadTo("\r\n0\r\n\r\n"), HasSubstr("data: [DONE]"));
      continue;
    }
    std::string body;
    peer.ReadAnswer(&body);
    EXPECT_EQ(json::parse(body)["choices"][0]["message"]["content"],
              absl::StrCat(i));
  }
}

TEST_F(HttpServerTest, EveryCodeOfTheCoreIsAStatus) {
  Start();
  const std::vector<int> expected = {0,   499, 500, 400, 504, 404,
                                     409, 403, 429, 400, 409, 400,
                                     501, 500, 503, 500, 401};
  for (int code = 1; code <= 16; ++code) {
    json body;
    const std::string head =
        Ask(Post(Chat(absl::StrCat("fail ", code))), &body);
    const auto at = static_cast<size_t>(code);
    EXPECT_THAT(head, StartsWith(absl::StrCat("HTTP/1.1 ", expected[at])));
    EXPECT_EQ(body["error"]["message"], "as asked");
    EXPECT_TRUE(body["error"]["type"].is_string());
    const bool conflict = expected[at] == 409 || code == 15;
    EXPECT_EQ(head.find("x-should-retry: false") != std::string::npos, conflict)
        << head;
    EXPECT_EQ(metrics_.requests(Method::kChatCompletions,
                                static_cast<absl::StatusCode>(code)),
              1u);
  }
}

TEST_F(HttpServerTest, AFullQueueSaysWhenToTryAgain) {
  Start();
  json body;
  const std::string head = Ask(Post(Chat("busy")), &body);
  EXPECT_THAT(head, StartsWith("HTTP/1.1 429"));
  EXPECT_THAT(head, HasSubstr("retry-after-ms: 1234\r\n"));
  EXPECT_THAT(head, HasSubstr("Retry-After: 2\r\n"));
  // Of several answers one that fails ends the others.
  Ask(Post(Chat("busy", {{"n", 5}, {"stream", true}})), &body);
  EXPECT_EQ(body["error"]["type"], "rate_limit_error");
  EXPECT_TRUE(Eventually([&] { return core_.running() == 0; }));
}

TEST_F(HttpServerTest, WhileTheModelLoads) {
  Start("", /*open=*/false);
  frontend_->gate.SetProgress("reading", 0.5);
  json body;
  std::string head = Ask("GET /health HTTP/1.1\r\nHost: x\r\n\r\n", &body);
  EXPECT_THAT(head, StartsWith("HTTP/1.1 503"));
  EXPECT_EQ(body["status"], "loading");
  EXPECT_EQ(body["percent"], 50);
  head = Ask(Post(Chat("say x")), &body);
  EXPECT_THAT(head, StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(head, HasSubstr("Retry-After: 1\r\n"));
  EXPECT_EQ(body["error"]["code"], "loading");
  frontend_->gate.Open(&core_);
  head = Ask("HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
             &body);
  EXPECT_THAT(head, StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, AClientThatGoesAwayCancelsItsTurns) {
  Start();
  {
    Peer peer(server_->address());
    peer.Send(Post(Chat("hang", {{"n", 3}})));
    ASSERT_TRUE(Eventually([&] { return core_.running() == 3; }));
  }
  EXPECT_TRUE(Eventually([&] { return core_.running() == 0; }));
  EXPECT_EQ(core_.cancelled(), 3);
}

TEST_F(HttpServerTest, SilenceIsFilledWithPings) {
  limits_.stall = milliseconds(1000);  // looked at every 100 ms
  ping_ = milliseconds(1);
  Start();
  Peer peer(server_->address());
  peer.Send(Post(Chat("hang", {{"stream", true}})));
  EXPECT_THAT(peer.ReadTo(": ping\n\n"), StartsWith("HTTP/1.1 200 OK"));
  peer.ReadTo(": ping\n\n");
  EXPECT_EQ(core_.running(), 1);
}

TEST_F(HttpServerTest, AClientThatLetsTooMuchPileUpLosesItsAnswer) {
  limits_.queued_bytes = 64 << 10;
  Start();
  Peer peer(server_->address(), /*receive_bytes=*/4096);
  peer.Send(Post(Chat("flood", {{"stream", true}})));
  EXPECT_TRUE(Eventually([&] { return core_.cancelled() == 1; }));
  EXPECT_TRUE(Eventually([&] {
    return metrics_.requests(Method::kChatCompletions,
                             absl::StatusCode::kResourceExhausted) == 1;
  }));
  // What it then reads does not look whole.
  EXPECT_THAT(peer.ReadAll(), Not(HasSubstr("[DONE]")));
}

TEST_F(HttpServerTest, AClientThatReadsNothingIsCutOff) {
  limits_.stall = milliseconds(50);
  Start();
  Peer peer(server_->address(), /*receive_bytes=*/4096);
  peer.Send(Post(Chat("flood", {{"stream", true}})));
  EXPECT_TRUE(Eventually([&] { return core_.cancelled() == 1; }));
  EXPECT_TRUE(Eventually([&] { return server_->connections().open == 0; }));
}

TEST_F(HttpServerTest, WhoIsSlowToSendIsToldAndLetGo) {
  options_.head_timeout = milliseconds(50);
  options_.body_timeout = milliseconds(50);
  Start();
  Peer head(server_->address());
  head.Send("GET /health HT");
  EXPECT_THAT(head.ReadAll(), StartsWith("HTTP/1.1 408"));
  Peer body(server_->address());
  const std::string request = Post(Chat("say x"));
  body.Send(request.substr(0, request.size() - 1));
  EXPECT_THAT(body.ReadAll(), StartsWith("HTTP/1.1 408"));
}

TEST_F(HttpServerTest, AConnectionThatIsIdleIsClosed) {
  options_.idle_timeout = milliseconds(50);
  Start();
  EXPECT_EQ(Peer(server_->address()).ReadAll(), "");
  Peer used(server_->address());
  used.Send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(used.ReadAll(), HasSubstr("{\"status\":\"ok\"}"));
}

TEST_F(HttpServerTest, BodiesComeInPiecesAndInChunks) {
  Start();
  const std::string text = Chat("say pieces").dump();
  std::string request =
      "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
      "Content-Type: application/json; charset=utf-8\r\n"
      "Transfer-Encoding: chunked\r\n\r\n";
  for (const char c : text)
    absl::StrAppend(&request, "1\r\n", std::string(1, c), "\r\n");
  request += "0\r\n\r\n";
  Peer peer(server_->address());
  for (const char c : request) peer.Send(std::string(1, c));
  std::string body;
  peer.ReadAnswer(&body);
  EXPECT_EQ(json::parse(body)["choices"][0]["message"]["content"], "pieces");
}

TEST_F(HttpServerTest, ABodyIsReadOnlyFromWhoHasAToken) {
  Start(testing::WriteTestFile("http_tokens", "ta alice\n"));
  Peer peer(server_->address());
  peer.Send(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
      "Content-Length: 1000\r\n\r\n");
  const std::string answer = peer.ReadAll();
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 401"));
  EXPECT_THAT(answer, HasSubstr("WWW-Authenticate: Bearer"));
  EXPECT_THAT(answer, HasSubstr("invalid_api_key"));
  json body;
  EXPECT_THAT(Ask(Post(Chat("say x"), "Authorization: Bearer ta\r\n"), &body),
              StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, MemoryForBodiesThatArriveIsBounded) {
  Start();
  std::vector<std::unique_ptr<Peer>> peers;
  for (int i = 0; i < 4; ++i) {
    peers.push_back(std::make_unique<Peer>(server_->address()));
    peers.back()->Send(absl::StrCat(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
        "Content-Type: application/json\r\nExpect: 100-continue\r\n"
        "Content-Length: ",
        1 << 20, "\r\n\r\n"));
    EXPECT_EQ(peers.back()->ReadTo("\r\n\r\n"),
              "HTTP/1.1 100 Continue\r\n\r\n");
  }
  json body;
  EXPECT_THAT(Ask(Post(Chat("say x")), &body), StartsWith("HTTP/1.1 429"));
  peers.clear();
  EXPECT_TRUE(Eventually([&] {
    return Ask(Post(Chat("say x")), &body).starts_with("HTTP/1.1 200");
  }));
}

TEST_F(HttpServerTest, TheEndLetsAnswersEnd) {
  Start();
  Peer idle(server_->address());
  idle.Send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
  idle.ReadTo("\"ok\"}");
  Peer running(server_->address());
  running.Send(Post(Chat("flood 2000000")));
  // More than the buffers hold: it waits for its reader.
  ASSERT_TRUE(Eventually([&] {
    return metrics_.requests(Method::kChatCompletions, absl::StatusCode::kOk) ==
           1;
  }));
  frontend_->gate.Close();
  server_->StopServing();
  EXPECT_EQ(idle.ReadAll(), "");
  json body;
  EXPECT_THAT(Ask(Post(Chat("say x")), &body), StartsWith("HTTP/1.1 503"));
  EXPECT_EQ(body["error"]["code"], "shutting_down");
  std::thread end([&] { server_->Shutdown(steady_clock::now() + kPatience); });
  std::string text;
  running.ReadAnswer(&text);
  EXPECT_EQ(json::parse(text)["choices"][0]["message"]["content"],
            std::string(2'000'000, 'x'));
  EXPECT_EQ(running.ReadAll(), "");
  end.join();
}

TEST_F(HttpServerTest, TheEndCutsOffWhoDoesNotRead) {
  Start();
  Peer peer(server_->address(), 4096);
  peer.Send(Post(Chat("flood 2000000")));
  ASSERT_TRUE(Eventually([&] { return core_.running() == 0; }));
  server_->Shutdown(steady_clock::now());
  EXPECT_EQ(server_->connections().open, 0);
}

TEST(ExchangeTest, WhoHearsTheAnswerFindsTheMemoryFree) {
  RequestBytes bytes(100);
  std::vector<RequestBytes::Held> arriving;
  arriving.push_back(*bytes.Hold(60));
  bool is_heard = false;
  Exchange exchange({}, "body", std::move(arriving), {}, [&](bool) {
    is_heard = true;
    EXPECT_EQ(bytes.held(), 0);
  });
  exchange.Respond({});
  EXPECT_TRUE(is_heard);
}

TEST_F(HttpServerTest, APortInUseIsNamedWithItsFlag) {
  Start();
  HttpServerOptions options = options_;
  options.listen.address = server_->address();
  options.listen.flag = "--http-listen";
  OpenAiOptions api;
  api.frontend = frontend_.get();
  const auto second = HttpServer::Listen(options, MakeOpenAiApi(api));
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr("--http-listen"));
}

}  // namespace
}  // namespace xcache
