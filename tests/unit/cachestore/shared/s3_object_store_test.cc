// The store against S3 in memory: conditions, tries, deadlines, messages.
#include "cachestore/shared/s3_object_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <ctime>
#include <future>

#include "absl/strings/str_cat.h"
#include "tests/unit/cachestore/shared/fake_s3.h"

namespace xcache {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using Fault = FakeS3::Fault;
using Request = HttpPeer::Request;

std::string Message(const absl::Status& status) {
  return std::string(status.message());
}

class S3ObjectStoreTest : public testing::Test {
 protected:
  void SetUp() override { Open({}); }

  void Open(S3Options options, HttpOptions http_options = {}) {
    store_.reset();
    options.location = {.bucket = "bucket", .prefix = "fleet/"};
    options.endpoint = {.tls = false,
                        .host = absl::StrCat("127.0.0.1:", s3_.port())};
    auto http = HttpClient::Create(http_options);
    ASSERT_TRUE(http.ok()) << http.status();
    auto store =
        OpenS3ObjectStore(options, *std::move(http),
                          FixedCredentials({.access_key_id = "AKID",
                                            .secret_key = "s3cret",
                                            .session_token = "t0ken"}));
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  // The first `n` requests fare so.
  void First(int n, const Fault& fault) {
    s3_.set_faults([n, fault](const Request&, int i) {
      return i < n ? std::optional<Fault>(fault) : std::nullopt;
    });
  }
  int NumRequests() const { return static_cast<int>(s3_.requests().size()); }

  static Fault Lost() { return {}; }  // before the store saw it
  static Fault LostAnswer() { return {.is_done = true}; }

  FakeS3 s3_;
  std::unique_ptr<ObjectStore> store_;
};

constexpr char kPath[] = "/bucket/fleet/a";

TEST_F(S3ObjectStoreTest, PutGetDelete) {
  const auto etag = store_->Put("a", "bytes");
  ASSERT_TRUE(etag.ok()) << etag.status();
  EXPECT_EQ(s3_.Find(kPath)->bytes, "bytes");
  auto object = store_->Get("a");
  ASSERT_TRUE(object.ok()) << object.status();
  EXPECT_EQ(object->bytes, "bytes");
  EXPECT_EQ(object->etag, *etag);
  EXPECT_FALSE(object->not_modified);
  object = store_->Get("a", {.if_none_match = *etag});
  ASSERT_TRUE(object.ok()) << object.status();
  EXPECT_TRUE(object->not_modified);
  EXPECT_EQ(object->etag, *etag);
  ASSERT_TRUE(store_->Put("a", "others").ok());
  object = store_->Get("a", {.if_none_match = *etag});
  ASSERT_TRUE(object.ok()) << object.status();
  EXPECT_EQ(object->bytes, "others");
  EXPECT_TRUE(store_->Delete("a").ok());
  EXPECT_TRUE(store_->Delete("a").ok());
  const auto status = store_->Get("a").status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr("http://127.0.0.1:"), HasSubstr("bucket bucket"),
                    HasSubstr("fleet/a"), HasSubstr("404 NoSuchKey")));
}

TEST_F(S3ObjectStoreTest, ConditionsHoldOrAbort) {
  const auto absent = PutCondition::IfAbsent();
  const auto first = store_->Put("a", "1", {.condition = absent});
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(
      absl::IsAborted(store_->Put("a", "2", {.condition = absent}).status()));
  const auto second =
      store_->Put("a", "2", {.condition = PutCondition::IfEtag(*first)});
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_TRUE(absl::IsAborted(
      store_->Put("a", "3", {.condition = PutCondition::IfEtag(*first)})
          .status()));
  EXPECT_TRUE(absl::IsAborted(
      store_->Put("b", "3", {.condition = PutCondition::IfEtag(*first)})
          .status()));
  EXPECT_EQ(s3_.Find(kPath)->bytes, "2");
  // Nothing was unclear: no request but these five.
  EXPECT_EQ(NumRequests(), 5);
}

TEST_F(S3ObjectStoreTest, APutWhoseAnswerWasLostKnowsItsOwnWork) {
  for (const bool is_absent : {true, false}) {
    PutCondition condition = PutCondition::IfAbsent();
    if (!is_absent) condition = PutCondition::IfEtag(store_->Get("a")->etag);
    const std::string bytes = is_absent ? "first" : "second";
    First(1, LostAnswer());
    const auto etag = store_->Put("a", bytes, {.condition = condition});
    ASSERT_TRUE(etag.ok()) << etag.status();
    EXPECT_EQ(*etag, s3_.Find(kPath)->etag);
    EXPECT_EQ(s3_.Find(kPath)->bytes, bytes);
  }
}

TEST_F(S3ObjectStoreTest, APutOnADeadConnectionKnowsItsOwnWorkToo) {
  // Not this store but curl sends it again, on another connection.
  Open({}, {.max_connections = 1});
  ASSERT_TRUE(store_->Delete("x").ok());
  First(1, {.is_done = true,
            .reply = {.bytes = "", .then = HttpPeer::Reply::Then::kClose}});
  const auto etag =
      store_->Put("a", "bytes", {.condition = PutCondition::IfAbsent()});
  ASSERT_TRUE(etag.ok()) << etag.status();
  EXPECT_EQ(*etag, s3_.Find(kPath)->etag);
  EXPECT_EQ(NumRequests(), 4);  // DELETE, PUT, curl's own PUT, HEAD
  EXPECT_EQ(store_->stats().retries, 0);
}

TEST_F(S3ObjectStoreTest, AfterALostTryAnothersWriteIsNotTakenForOurs) {
  s3_.Set(kPath, "old");
  const std::string old = store_->Get("a")->etag;
  // The first try is lost on the way there; another writer is quicker.
  s3_.set_faults([&](const Request&, int n) -> std::optional<Fault> {
    if (n > 0) return std::nullopt;
    s3_.Set(kPath, "theirs",
            {{"x-amz-meta-xcache-put", std::string(32, '0')},
             {"x-amz-meta-xcache-after", old}});
    return Lost();
  });
  const auto status =
      store_->Put("a", "ours", {.condition = PutCondition::IfEtag(old)})
          .status();
  EXPECT_TRUE(absl::IsAborted(status)) << status;
  EXPECT_EQ(s3_.Find(kPath)->bytes, "theirs");
}

TEST_F(S3ObjectStoreTest, WhetherWeWroteBeforeAnotherMayBeUnknown) {
  s3_.Set(kPath, "old");
  const std::string old = store_->Get("a")->etag;
  // Ours is written, its answer lost; another writer goes on from it.
  s3_.set_faults([&](const Request&, int n) -> std::optional<Fault> {
    if (n == 0) return LostAnswer();
    if (n == 1) {
      s3_.Set(kPath, "theirs",
              {{"x-amz-meta-xcache-put", std::string(32, '0')},
               {"x-amz-meta-xcache-after", s3_.Find(kPath)->etag}});
    }
    return std::nullopt;
  });
  auto status =
      store_->Put("a", "ours", {.condition = PutCondition::IfEtag(old)})
          .status();
  EXPECT_TRUE(absl::IsUnknown(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("written by another"));

  // Ours is written, its answer lost; another deletes it.
  s3_.Set(kPath, "old");
  s3_.set_faults([&](const Request&, int n) -> std::optional<Fault> {
    if (n == 0) return LostAnswer();
    if (n == 1) s3_.Erase(kPath);
    return std::nullopt;
  });
  status = store_->Put("a", "ours", {.condition = PutCondition::IfEtag(old)})
               .status();
  EXPECT_TRUE(absl::IsUnknown(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("deleted"));
}

TEST_F(S3ObjectStoreTest, WhatIsSafeIsTriedAgain) {
  s3_.Set(kPath, "bytes");
  for (const Fault& fault :
       {Lost(), Fault{.reply = FakeS3::Error(500, "InternalError")},
        Fault{.reply = FakeS3::Error(503, "SlowDown")},
        Fault{.reply = HttpReply(503, "no healthy upstream")},
        Fault{.reply = FakeS3::Error(429, "TooManyRequests")},
        Fault{.reply = FakeS3::Error(409, "ConditionalRequestConflict")},
        Fault{.reply = FakeS3::Error(400, "BadDigest")},
        Fault{.reply = {.bytes = HttpBytes(200, "bytes").substr(0, 45),
                       .then = HttpPeer::Reply::Then::kClose}}}) {
    First(2, fault);
    const auto object = store_->Get("a");
    ASSERT_TRUE(object.ok()) << object.status();
    EXPECT_EQ(object->bytes, "bytes");
    First(2, fault);
    EXPECT_TRUE(store_->Delete("b").ok());
    First(2, fault);
    EXPECT_TRUE(
        store_->Put("c", "x", {.condition = PutCondition::IfAbsent()}).ok());
    EXPECT_TRUE(store_->Delete("c").ok());
  }
  EXPECT_EQ(store_->stats().failures, 0);
  // Three tries of each, and one to clear away.
  EXPECT_EQ(NumRequests(), 8 * (3 * 3 + 1));
  EXPECT_EQ(store_->stats().throttled, 2 * 3 * 2);
}

TEST_F(S3ObjectStoreTest, APutWithoutConditionIsNotRepeatedWhereItMayBeDone) {
  First(1, LostAnswer());
  EXPECT_TRUE(absl::IsUnavailable(store_->Put("a", "x").status()));
  First(1, {.reply = HttpReply(502, "")});
  EXPECT_TRUE(absl::IsUnavailable(store_->Put("a", "x").status()));
  EXPECT_EQ(NumRequests(), 2);
  First(1, {.reply = FakeS3::Error(503, "SlowDown")});
  EXPECT_TRUE(store_->Put("a", "x").ok());
  EXPECT_EQ(NumRequests(), 4);
}

TEST_F(S3ObjectStoreTest, EachBodyHasItsDigest) {
  ASSERT_TRUE(store_->Put("a", "hello").ok());
  EXPECT_EQ(s3_.requests().back().headers.at("content-md5"),
            "XUFAKrxLKna5cZ2REBfFkg==");
}

TEST_F(S3ObjectStoreTest, ThrottlingSaysWhenToComeBack) {
  Fault slow{.reply = HttpReply(503, "<Error><Code>SlowDown</Code></Error>",
                                {{"Retry-After", "7"}})};
  First(1000, slow);
  auto status = store_->Get("a", {.timeout = milliseconds(2000)}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_EQ(RetryAfter(status), milliseconds(7000));
  EXPECT_EQ(NumRequests(), 1);  // within the deadline it is of no use
  First(1000, {.reply = FakeS3::Error(429, "TooManyRequests")});
  status = store_->Get("a", {.timeout = milliseconds(300)}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_EQ(RetryAfter(status), milliseconds(1000));
  EXPECT_THAT(Message(status), HasSubstr("(try "));
  EXPECT_EQ(RetryAfter(absl::OkStatus()), std::nullopt);
}

TEST_F(S3ObjectStoreTest, ErrorsAreWhatTheyMean) {
  const struct {
    HttpPeer::Reply reply;
    absl::StatusCode code;
    const char* text;
  } kCases[] = {
      {FakeS3::Error(404, "NoSuchBucket"), absl::StatusCode::kNotFound,
       "404 NoSuchBucket"},
      {FakeS3::Error(403, "AccessDenied"), absl::StatusCode::kPermissionDenied,
       "403 AccessDenied"},
      {FakeS3::Error(400, "ExpiredToken"), absl::StatusCode::kPermissionDenied,
       "400 ExpiredToken"},
      {HttpReply(401, "who?"), absl::StatusCode::kPermissionDenied, "401"},
      {HttpReply(301, "", {{"x-amz-bucket-region", "eu-west-1"}}),
       absl::StatusCode::kFailedPrecondition, "in the region eu-west-1"},
      {FakeS3::Error(501, "NotImplemented"), absl::StatusCode::kUnimplemented,
       "501 NotImplemented"},
      {HttpReply(418, ""), absl::StatusCode::kInternal, "418"},
      {HttpReply(200, "no etag"), absl::StatusCode::kInternal, "ETag"},
      {HttpReply(304, ""), absl::StatusCode::kInternal, "304"},
  };
  for (const auto& c : kCases) {
    First(1, {.reply = c.reply});
    const auto status = store_->Get("a").status();
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_THAT(Message(status),
                AllOf(HasSubstr(c.text), HasSubstr("bucket bucket"),
                      HasSubstr("http://127.0.0.1:"), Not(HasSubstr("s3cret")),
                      Not(HasSubstr("t0ken"))));
  }
  First(1, {.reply = FakeS3::Error(404, "NoSuchBucket")});
  EXPECT_TRUE(absl::IsNotFound(store_->Delete("a")));
  First(1, {.reply = FakeS3::Error(404, "NoSuchBucket")});
  EXPECT_TRUE(absl::IsNotFound(
      store_->Put("a", "x", {.condition = PutCondition::IfEtag("e")})
          .status()));
}

TEST_F(S3ObjectStoreTest, ADeadlineHoldsOverAllTries) {
  Open({}, {.stall_timeout = milliseconds(100)});
  First(1000, {.reply = {.bytes = "",
                         .then = HttpPeer::Reply::Then::kClose,
                         .wait = milliseconds(20000)}});
  const auto start = steady_clock::now();
  const auto status = store_->Get("a", {.timeout = milliseconds(600)}).status();
  const auto took = steady_clock::now() - start;
  EXPECT_TRUE(absl::IsDeadlineExceeded(status) || absl::IsUnavailable(status))
      << status;
  EXPECT_GT(NumRequests(), 1);
  EXPECT_LT(took, milliseconds(10000));
  EXPECT_EQ(store_->stats().failures, 1);
}

TEST_F(S3ObjectStoreTest, AClockThatIsWrongIsCorrectedByTheServers) {
  const time_t server = time(nullptr) - 7200;
  char date[64];
  struct tm utc {};
  gmtime_r(&server, &utc);
  strftime(date, sizeof(date), "%a, %d %b %Y %H:%M:%S GMT", &utc);
  const HttpPeer::Reply skewed =
      HttpReply(403, "<Error><Code>RequestTimeTooSkewed</Code></Error>",
                {{"Date", date}});
  First(1, {.reply = skewed});
  ASSERT_TRUE(store_->Put("a", "x").ok());
  const auto requests = s3_.requests();
  ASSERT_EQ(requests.size(), 2u);
  strftime(date, sizeof(date), "%Y%m%dT%H", &utc);
  EXPECT_THAT(requests[1].headers.at("x-amz-date"), HasSubstr(date));
  // A server that stays of another mind is believed once a call.
  First(1000, {.reply = skewed});
  EXPECT_TRUE(absl::IsPermissionDenied(store_->Get("a").status()));
  EXPECT_EQ(NumRequests(), 4);
}

TEST_F(S3ObjectStoreTest, WhatWaitsIsBounded) {
  Open({.max_queued_bytes = 1000, .max_calls = 3}, {.max_connections = 1});
  First(1, {.is_done = true,
            .reply = {.bytes = HttpBytes(200, "", {{"ETag", "\"e\""}}),
                      .wait = milliseconds(300)}});
  std::vector<std::future<absl::StatusOr<std::string>>> puts;
  const auto put = [&](size_t size) {
    auto promise =
        std::make_shared<std::promise<absl::StatusOr<std::string>>>();
    store_->Put("a", std::string(size, 'x'), {},
                [promise](absl::StatusOr<std::string> etag) {
                  promise->set_value(std::move(etag));
                });
    puts.push_back(promise->get_future());
  };
  put(400);
  put(600);
  put(1);  // one byte too many
  put(0);
  put(0);  // one call too many
  EXPECT_EQ(store_->stats().queued_bytes, 1000);
  for (size_t i = 0; i < puts.size(); ++i) {
    const auto status = puts[i].get().status();
    if (i == 2 || i == 4) {
      EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
      EXPECT_NE(RetryAfter(status), std::nullopt);
    } else {
      EXPECT_TRUE(status.ok()) << status;
    }
  }
  EXPECT_EQ(store_->stats().queued_bytes, 0);
  EXPECT_TRUE(store_->Put("a", std::string(1000, 'x')).ok());
}

TEST_F(S3ObjectStoreTest, ObjectsHaveALimit) {
  Open({.max_object_bytes = 10});
  s3_.Set(kPath, "12345678901");
  EXPECT_TRUE(absl::IsOutOfRange(store_->Get("a").status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(store_->Put("a", "12345678901").status()));
  EXPECT_TRUE(store_->Put("a", "1234567890").ok());
  EXPECT_EQ(store_->Get("a")->bytes, "1234567890");
}

TEST_F(S3ObjectStoreTest, BadArgumentsAreRefusedBeforeAnythingIsSent) {
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Get("").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Get("../a").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Put("a b", "x").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Delete("a//b")));
  EXPECT_TRUE(absl::IsInvalidArgument(
      store_->Get("a", {.if_none_match = "a\"\r\nx: y"}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      store_->Put("a", "x", {.condition = PutCondition::IfEtag("")}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      store_->Put("a", "x", {.condition = PutCondition::IfEtag("absent")})
          .status()));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->List({.prefix = "/"}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->List({.max_keys = 0}).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(store_->List({.max_keys = 1001}).status()));
  EXPECT_EQ(NumRequests(), 0);
}

std::string ListXml(const std::vector<std::string>& keys, bool truncated) {
  std::string xml =
      absl::StrCat("<ListBucketResult><IsTruncated>",
                   truncated ? "true" : "false", "</IsTruncated>");
  for (const std::string& key : keys) {
    absl::StrAppend(&xml, "<Contents><Key>", key,
                    "</Key><Size>7</Size><ETag>\"e\"</ETag><LastModified>"
                    "2009-10-12T17:50:30Z</LastModified></Contents>");
  }
  return xml + "</ListBucketResult>";
}

TEST_F(S3ObjectStoreTest, AListIsAskedForAndReadPageByPage) {
  s3_.set_faults([](const Request&, int n) -> std::optional<Fault> {
    return Fault{.reply = HttpReply(
                     200, n == 0
                              ? ListXml({"fleet/p/a", "fleet/p/b"}, true)
                              : ListXml({"fleet/p/c", "fleet/p/d/"}, false))};
  });
  auto list = store_->List({.prefix = "p/", .max_keys = 2});
  ASSERT_TRUE(list.ok()) << list.status();
  ASSERT_EQ(list->objects.size(), 2u);
  EXPECT_EQ(list->objects[0].key, "p/a");
  EXPECT_EQ(list->objects[0].num_bytes, 7u);
  EXPECT_EQ(list->objects[0].etag, "e");
  EXPECT_EQ(list->next_start_after, "p/b");
  list = store_->List({.prefix = "p/", .start_after = "p/b", .max_keys = 2});
  ASSERT_TRUE(list.ok()) << list.status();
  ASSERT_EQ(list->objects.size(), 1u);  // a folder's marker is no object
  EXPECT_EQ(list->objects[0].key, "p/c");
  EXPECT_EQ(list->next_start_after, "");
  EXPECT_EQ(s3_.requests()[1].target,
            "/bucket?list-type=2&max-keys=2&prefix=fleet%2Fp%2F&"
            "start-after=fleet%2Fp%2Fb");
}

TEST_F(S3ObjectStoreTest, AListThatCannotBeIsUnavailable) {
  for (const std::string& xml :
       {ListXml({}, true), ListXml({"other/a"}, false),
        ListXml({"fleet/b", "fleet/a"}, false), ListXml({"fleet/a"}, false),
        std::string("<html/>")}) {
    First(1, {.reply = HttpReply(200, xml)});
    const auto status = store_->List({.start_after = "a"}).status();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr("bucket bucket"));
  }
}

TEST_F(S3ObjectStoreTest, EncryptionIsAskedForWhereItIsWanted) {
  ASSERT_TRUE(store_->Put("a", "x").ok());
  Open({.server_side_encryption = "aws:kms", .kms_key_id = "the-key"});
  ASSERT_TRUE(store_->Put("a", "x").ok());
  const auto requests = s3_.requests();
  EXPECT_EQ(requests[0].headers.count("x-amz-server-side-encryption"), 0u);
  EXPECT_EQ(requests[1].headers.at("x-amz-server-side-encryption"), "aws:kms");
  EXPECT_EQ(
      requests[1].headers.at("x-amz-server-side-encryption-aws-kms-key-id"),
      "the-key");
  EXPECT_THAT(requests[1].headers.at("authorization"),
              HasSubstr(";x-amz-server-side-encryption;"));
}

TEST_F(S3ObjectStoreTest, TheSecretIsNeverSentAndTheTokenIsSigned) {
  ASSERT_TRUE(store_->Put("a", "x").ok());
  for (const Request& request : s3_.requests()) {
    EXPECT_THAT(request.bytes, Not(HasSubstr("s3cret")));
    EXPECT_EQ(request.headers.at("x-amz-security-token"), "t0ken");
  }
}

TEST_F(S3ObjectStoreTest, WhoGoesAwayCancels) {
  First(1000, {.reply = {.bytes = "",
                         .then = HttpPeer::Reply::Then::kClose,
                         .wait = milliseconds(20000)}});
  std::promise<absl::Status> ended;
  store_->Get("a", {}, [&ended](const absl::StatusOr<StoredObject>& object) {
    ended.set_value(object.status());
  });
  store_.reset();
  EXPECT_TRUE(absl::IsCancelled(ended.get_future().get()));
}

TEST(S3OptionsTest, AreChecked) {
  const auto open = [](const S3Options& options) {
    return OpenS3ObjectStore(options, *HttpClient::Create({}),
                             FixedCredentials({}))
        .status();
  };
  EXPECT_TRUE(open({}).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(open({.region = "no region"})));
  EXPECT_TRUE(
      absl::IsInvalidArgument(open({.server_side_encryption = "ROT13"})));
  EXPECT_TRUE(absl::IsInvalidArgument(open({.kms_key_id = "key"})));
}

}  // namespace
}  // namespace xcache
