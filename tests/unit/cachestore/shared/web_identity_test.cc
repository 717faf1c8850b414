#include "cachestore/shared/web_identity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <future>

#include "absl/strings/str_cat.h"
#include "cachestore/shared/sigv4.h"
#include "tests/support/http_peer.h"

namespace xcache {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::HasSubstr;
using testing::Not;

std::string TimeText(int64_t unix_s) {
  const auto seconds = static_cast<time_t>(unix_s);
  struct tm utc {};
  gmtime_r(&seconds, &utc);
  char text[32];
  return {text, strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc)};
}

class WebIdentityTest : public testing::Test {
 protected:
  void SetUp() override { WriteToken("jwt.one"); }
  void TearDown() override {
    http_->Stop();
    std::remove(path_.c_str());
  }
  void WriteToken(const std::string& token) {
    std::ofstream(path_) << token << "\n";
  }
  void Open(std::chrono::seconds refresh_before = std::chrono::seconds(300),
            milliseconds timeout = milliseconds(3000)) {
    HttpEndpoint endpoint{.tls = false,
                          .host = absl::StrCat("127.0.0.1:", peer_.port())};
    auto provider = WebIdentityCredentials(
        {.token_file = path_,
         .role_arn = "arn:aws:iam::123456789012:role/xcache",
         .session_name = "replica-1",
         .endpoint = endpoint,
         .timeout = timeout,
         .refresh_before = refresh_before},
        http_);
    ASSERT_TRUE(provider.ok()) << provider.status();
    provider_ = *std::move(provider);
  }
  absl::StatusOr<Credentials> Get(milliseconds timeout = milliseconds(3000)) {
    std::promise<absl::StatusOr<Credentials>> promise;
    provider_->Get(steady_clock::now() + timeout,
                   [&promise](absl::StatusOr<Credentials> credentials) {
                     promise.set_value(std::move(credentials));
                   });
    return promise.get_future().get();
  }
  HttpPeer::Reply Answer(const HttpPeer::Request& request) {
    const int n = ++num_asked_;
    {
      MutexLock lock(mu_);
      last_ = request;
    }
    if (n <= num_faults_) return fault_;
    return HttpReply(
        200,
        absl::StrCat("<AssumeRoleWithWebIdentityResponse>"
                     "<AssumeRoleWithWebIdentityResult><Credentials>"
                     "<AccessKeyId>ASIA",
                     n,
                     "</AccessKeyId><SecretAccessKey>s3cret</SecretAccessKey>"
                     "<SessionToken>t0ken</SessionToken><Expiration>",
                     TimeText(time(nullptr) + life_s_.load()),
                     "</Expiration></Credentials>"
                     "</AssumeRoleWithWebIdentityResult>"
                     "</AssumeRoleWithWebIdentityResponse>"));
  }
  HttpPeer::Request last() {
    MutexLock lock(mu_);
    return last_;
  }

  const std::string path_ = testing::TempDir() + "/web_identity_test_token";
  std::atomic<int> num_asked_{0}, num_faults_{0}, life_s_{3600};
  HttpPeer::Reply fault_;
  Mutex mu_;
  HttpPeer::Request last_ XC_GUARDED_BY(mu_);
  HttpPeer peer_{[this](const HttpPeer::Request& r) { return Answer(r); }};
  std::shared_ptr<HttpClient> http_ = *HttpClient::Create({});
  std::unique_ptr<CredentialsProvider> provider_;
};

TEST_F(WebIdentityTest, ATokenBuysCredentialsThatLast) {
  Open();
  EXPECT_EQ(num_asked_, 0);
  auto credentials = Get();
  ASSERT_TRUE(credentials.ok()) << credentials.status();
  EXPECT_EQ(*credentials, (Credentials{"ASIA1", "s3cret", "t0ken"}));
  EXPECT_EQ(*Get(), *credentials);
  EXPECT_EQ(num_asked_, 1);
  EXPECT_EQ(last().method, "POST");
  EXPECT_EQ(last().target, "/");
  EXPECT_EQ(last().body,
            "Action=AssumeRoleWithWebIdentity&"
            "RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fxcache&"
            "RoleSessionName=replica-1&Version=2011-06-15&"
            "WebIdentityToken=jwt.one");
  EXPECT_EQ(last().headers.at("content-type"),
            "application/x-www-form-urlencoded");
}

TEST_F(WebIdentityTest, TheyAreRefreshedBeforeTheyExpireWithTheTokenOfThen) {
  life_s_ = 4;  // a fifth of it: 0.8 s before
  Open();
  EXPECT_EQ(Get()->access_key_id, "ASIA1");
  WriteToken("jwt.two");
  // Never without good ones, and never asked for by every call.
  const auto end = steady_clock::now() + milliseconds(5000);
  std::string id;
  while (steady_clock::now() < end && id != "ASIA2") {
    const auto credentials = Get();
    ASSERT_TRUE(credentials.ok()) << credentials.status();
    id = credentials->access_key_id;
    std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_EQ(id, "ASIA2");
  EXPECT_EQ(num_asked_, 2);
  EXPECT_THAT(last().body, HasSubstr("WebIdentityToken=jwt.two"));
}

TEST_F(WebIdentityTest, ManyWhoWaitAskOnce) {
  Open();
  std::vector<std::future<absl::StatusOr<Credentials>>> all;
  for (int i = 0; i < 20; ++i) {
    auto promise =
        std::make_shared<std::promise<absl::StatusOr<Credentials>>>();
    provider_->Get(steady_clock::now() + milliseconds(3000),
                   [promise](absl::StatusOr<Credentials> credentials) {
                     promise->set_value(std::move(credentials));
                   });
    all.push_back(promise->get_future());
  }
  for (auto& one : all) EXPECT_EQ(one.get()->access_key_id, "ASIA1");
  EXPECT_EQ(num_asked_, 1);
}

TEST_F(WebIdentityTest, AServiceThatFailsIsAskedAgain) {
  num_faults_ = 2;
  fault_ = HttpReply(500, "");
  Open();
  const auto credentials = Get(milliseconds(5000));
  ASSERT_TRUE(credentials.ok()) << credentials.status();
  EXPECT_EQ(num_asked_, 3);
}

TEST_F(WebIdentityTest, ARefusalIsPermissionDeniedWithoutTheToken) {
  num_faults_ = 1;
  fault_ = HttpReply(400,
                     "<ErrorResponse><Error><Code>ExpiredTokenException</Code>"
                     "</Error></ErrorResponse>");
  Open();
  auto status = Get().status();
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_THAT(
      std::string(status.message()),
      testing::AllOf(HasSubstr("ExpiredTokenException"),
                     HasSubstr("http://127.0.0.1:"), Not(HasSubstr("jwt"))));
  EXPECT_TRUE(Get().ok());  // the next one asks again
  std::remove(path_.c_str());
  Open();
  status = Get().status();
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
}

TEST_F(WebIdentityTest, WhoWaitsHasItsOwnDeadline) {
  num_faults_ = 1;
  fault_ = {.bytes = "",
            .then = HttpPeer::Reply::Then::kClose,
            .wait = milliseconds(20000)};
  Open();
  const auto start = steady_clock::now();
  const auto status = Get(milliseconds(100)).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_LT(steady_clock::now() - start, milliseconds(10000));
}

TEST_F(WebIdentityTest, ExpiredOnesAreNoCredentials) {
  life_s_ = -10;
  Open();
  EXPECT_TRUE(absl::IsUnavailable(Get().status()));
}

TEST_F(WebIdentityTest, FromTheEnvironment) {
  for (const char* name : {"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN",
                           "AWS_ROLE_SESSION_NAME", "AWS_ENDPOINT_URL_STS"}) {
    ::unsetenv(name);
  }
  EXPECT_TRUE(
      absl::IsNotFound(WebIdentityFromEnvironment("eu-west-1").status()));
  ::setenv("AWS_ROLE_ARN", "arn:role", 1);
  EXPECT_TRUE(absl::IsInvalidArgument(
      WebIdentityFromEnvironment("eu-west-1").status()));
  ::setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/token", 1);
  auto options = WebIdentityFromEnvironment("eu-west-1");
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->token_file, "/token");
  EXPECT_EQ(options->role_arn, "arn:role");
  EXPECT_EQ(options->session_name, "xcache");
  EXPECT_EQ(options->endpoint.Url(), "https://sts.eu-west-1.amazonaws.com");
  ::setenv("AWS_ENDPOINT_URL_STS", "http://sts:1", 1);
  EXPECT_EQ(WebIdentityFromEnvironment("eu-west-1")->endpoint.Url(),
            "http://sts:1");
  ::setenv("AWS_ENDPOINT_URL_STS", "sts", 1);
  EXPECT_TRUE(absl::IsInvalidArgument(
      WebIdentityFromEnvironment("eu-west-1").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      WebIdentityCredentials({.role_arn = "a b"}, http_).status()));
}

}  // namespace
}  // namespace xcache
