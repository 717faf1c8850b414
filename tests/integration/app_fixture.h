// A whole server in the test's process: a tiny model, a store in a temporary
// folder, real ports. Nothing in it is a fake.
#ifndef XCACHE_TESTS_INTEGRATION_APP_FIXTURE_H_
#define XCACHE_TESTS_INTEGRATION_APP_FIXTURE_H_

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "server/server_app.h"
#include "tests/support/wait_until.h"
#include "xcache/v1/inference.grpc.pb.h"
#include "xcache/v1/sessions.grpc.pb.h"

namespace xcache::testing {

inline constexpr std::chrono::seconds kPatience(60);

// The model's context, and a turn that no machine ends before a test does.
inline constexpr int kContextLength = 1 << 16;
inline constexpr uint32_t kEndlessTokens = 60'000;

// Waits until `done`; false where it never comes true.
template <typename Done>
bool Eventually(const Done& done) {
  return WaitUntil(done, kPatience);
}

// A folder of its own, removed with all that is in it.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// The body of a GET of `path` at "host:port"; empty where it failed.
std::string HttpGet(const std::string& address, const std::string& path);

class AppFixture : public ::testing::Test {
 public:
  struct Answer {
    grpc::Status status;
    std::string text;
    std::vector<uint32_t> tokens;  // where log-probabilities were asked for
    std::vector<float> logprobs;
    v1::Final final;
    std::multimap<std::string, std::string> trailers;
  };

 protected:
  AppFixture();

  // What tests start from; a test may change it before Start.
  Config config_;

  // Starts a server and connects to it.
  void Start();
  void Stop();
  void Connect(const std::shared_ptr<grpc::ChannelCredentials>& credentials);

  // --- Calls. `token_` goes with each where it is not empty.

  std::unique_ptr<grpc::ClientContext> Context(
      std::chrono::milliseconds timeout = kPatience) const;
  Answer Chat(const v1::ChatRequest& request,
              std::chrono::milliseconds timeout = kPatience);
  Answer Generate(const v1::GenerateRequest& request);
  grpc::Status CreateSession(const std::string& id, v1::Session* out = nullptr);
  grpc::Status GetSession(const std::string& id, v1::Session* out);

  std::string Scrape() const {
    return HttpGet(app_->metrics_address(), "/metrics");
  }
  // A sample's value on the metrics page, by its name with labels; -1: absent.
  double MetricValue(const std::string& sample) const;

  const TempFolder folder_;
  std::string token_;
  std::unique_ptr<ServerApp> app_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Sessions::Stub> sessions_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
};

// A greedy turn of `max_tokens` tokens that does not end early.
v1::ChatRequest Turn(const std::string& session, const std::string& text,
                     uint32_t max_tokens = 16);

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_INTEGRATION_APP_FIXTURE_H_
