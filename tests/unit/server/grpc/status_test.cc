#include "server/grpc/status.h"

#include <set>
#include <string>

#include "google/protobuf/descriptor.h"
#include "gtest/gtest.h"
#include "server/core/reason.h"
#include "xcache/v1/errors.pb.h"

namespace xcache {
namespace {

constexpr char kPrefix[] = "ERROR_REASON_";

v1::ErrorStatus DetailsOf(const grpc::Status& status) {
  v1::ErrorStatus details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  return details;
}

v1::ErrorInfo InfoOf(const grpc::Status& status) {
  v1::ErrorInfo info;
  const v1::ErrorStatus details = DetailsOf(status);
  EXPECT_GE(details.details_size(), 1);
  EXPECT_EQ(details.details(0).type_url(),
            "type.googleapis.com/google.rpc.ErrorInfo");
  EXPECT_TRUE(info.ParseFromString(details.details(0).value()));
  return info;
}

TEST(StatusTest, ReasonsAreThoseThatTheProtoDocuments) {
  std::set<std::string> documented, ours;
  const auto* values = v1::ErrorReason_descriptor();
  for (int i = 1; i < values->value_count(); ++i) {  // 0: unspecified
    documented.insert(values->value(i)->name());
  }
  for (const ReasonDef& def : ReasonTable()) {
    ours.insert(kPrefix + std::string(def.name));
  }
  EXPECT_EQ(ours, documented);
  EXPECT_EQ(ours.size(), ReasonTable().size()) << "two of one name";
}

TEST(StatusTest, EveryReasonReachesTheClient) {
  for (const ReasonDef& def : ReasonTable()) {
    const grpc::Status status =
        ToGrpcStatus(WithReason(absl::Status(def.code, "why"), def.id));
    EXPECT_EQ(static_cast<int>(status.error_code()),
              static_cast<int>(def.code));
    EXPECT_EQ(InfoOf(status).reason(), def.name);
    EXPECT_EQ(InfoOf(status).domain(), "xcache");
  }
}

TEST(StatusTest, EveryCodeHasAReason) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    EXPECT_EQ(ReasonOf(status).code, status.code()) << status;
    EXPECT_EQ(InfoOf(ToGrpcStatus(status)).reason(), ReasonOf(status).name);
  }
}

// What the store or the engine says is nothing that only the server can say.
TEST(StatusTest, ACodeAloneClaimsNothingThatMayBeWrong) {
  EXPECT_EQ(ReasonOf(absl::UnavailableError("I/O error")).name,
            "STORE_UNAVAILABLE");
  EXPECT_EQ(ReasonOf(absl::ResourceExhaustedError("the disk is full")).name,
            "OUT_OF_MEMORY");
  EXPECT_EQ(ReasonOf(absl::FailedPreconditionError("no user's message")).name,
            "WRONG_STATE");
  EXPECT_EQ(ReasonOf(ShuttingDown()).name, "SHUTTING_DOWN");
}

TEST(StatusTest, AReasonStaysWithTheCodeThatItIsOf) {
  // As where a wrapper keeps the payload under another code.
  const absl::Status status =
      WithReason(absl::InternalError("why"), Reason::kSessionBusy);
  EXPECT_EQ(ReasonOf(status).id, Reason::kInternal);
}

TEST(StatusTest, DetailsRepeatCodeAndMessageAndSayWhenToTryAgain) {
  const grpc::Status status =
      ToGrpcStatus(absl::ResourceExhaustedError("full \xff"), 1250);
  const v1::ErrorStatus details = DetailsOf(status);
  EXPECT_EQ(details.code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(details.message(), status.error_message());
  ASSERT_EQ(details.details_size(), 2);
  EXPECT_EQ(details.details(1).type_url(),
            "type.googleapis.com/google.rpc.RetryInfo");
  v1::RetryInfo retry;
  ASSERT_TRUE(retry.ParseFromString(details.details(1).value()));
  EXPECT_EQ(retry.retry_delay().seconds(), 1);
  EXPECT_EQ(retry.retry_delay().nanos(), 250'000'000);
}

TEST(StatusTest, ALongMessageLeavesRoomInTheTrailers) {
  const grpc::Status status =
      ToGrpcStatus(absl::InternalError(std::string(100'000, '\n')));
  // Percent-encoded three times as long, and in base64.
  EXPECT_LT(
      3 * status.error_message().size() + 4 * status.error_details().size() / 3,
      6000u);
}

}  // namespace
}  // namespace xcache
