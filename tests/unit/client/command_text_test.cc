#include <sched.h>
#include <signal.h>

#include <string>

#include "absl/status/status.h"
#include "client/command/exit_code.h"
#include "client/command/metrics_text.h"
#include "client/command/terminal.h"
#include "client/command/text.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace xcache::command {
namespace {

using ::testing::HasSubstr;

TEST(InterruptsTest, OneThatWasTakenCancelsNoLaterCall) {
  Interrupts::Install();
  for (int i = 0; i < 2000; ++i) {
    raise(SIGINT);
    ASSERT_TRUE(Interrupts::Take());
    client::CancelHandle call;
    {
      Interrupts::Scope scope(&call);
      sched_yield();
    }
    ASSERT_FALSE(call.cancelled()) << "after " << i << " calls";
  }
  client::CancelHandle call;
  Interrupts::Scope scope(&call);
  raise(SIGINT);
  while (!call.cancelled()) sched_yield();
  EXPECT_TRUE(Interrupts::Take());
}

TEST(TextTest, NumbersForPeople) {
  EXPECT_EQ(HumanCount(0), "0");
  EXPECT_EQ(HumanCount(999), "999");
  EXPECT_EQ(HumanCount(1000), "1,000");
  EXPECT_EQ(HumanCount(1234567), "1,234,567");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes(200.0 * 1024 * 1024), "200 MiB");
  EXPECT_EQ(HumanDuration(absl::Microseconds(1500)), "1.5 ms");
  EXPECT_EQ(HumanDuration(absl::Milliseconds(250)), "250 ms");
  EXPECT_EQ(HumanDuration(absl::Seconds(17)), "17.0 s");
  EXPECT_EQ(HumanAgo(absl::UnixEpoch(), absl::UnixEpoch() + absl::Minutes(5)),
            "5 min ago");
}

TEST(TextTest, ForeignTextCannotSteerTheTerminal) {
  EXPECT_EQ(Printable("a\x1b[31mb\r\x07"
                      "c\nd\te"),
            "a[31mbc\nd\te");
  EXPECT_EQ(Printable("\xC2\x9B"
                      "31m"),
            "31m");  // the 8-bit CSI
  EXPECT_EQ(Printable("\xC2\xA0\xC3\xA9"), "\xC2\xA0\xC3\xA9");
  EXPECT_EQ(OneLine("a\nb"), "a b");
}

TEST(TextTest, TablesAlignByCharacters) {
  EXPECT_EQ(Table({{"A", "NUMBER"}, {"ééé", "1"}, {"b", "22"}}, {1}),
            "A    NUMBER\nééé       1\nb        22\n");
}

TEST(ExitCodeTest, CodesAreDistinctWhereScriptsCare) {
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCodeOf(absl::InvalidArgumentError("")), 2);
  EXPECT_EQ(ExitCodeOf(absl::UnavailableError("")), 3);
  EXPECT_EQ(ExitCodeOf(absl::NotFoundError("")), 4);
  EXPECT_EQ(ExitCodeOf(absl::UnauthenticatedError("")), 5);
  EXPECT_EQ(ExitCodeOf(absl::AbortedError("")), 6);
  EXPECT_EQ(ExitCodeOf(absl::AlreadyExistsError("")), 7);
  EXPECT_EQ(ExitCodeOf(absl::DataLossError("")), 8);
  EXPECT_EQ(ExitCodeOf(absl::CancelledError("")), 130);
  EXPECT_EQ(ExitCodeOf(absl::InternalError("")), 1);
  EXPECT_EQ(ErrorLine(absl::InternalError("two\nlines")), "error: two lines");
}

constexpr char kPage[] = R"(# HELP x_total Things.
# TYPE x_total counter
x_total{method="Chat",code="OK"} 3
x_total{method="Chat",code="ABORTED"} 2
x_total{method="Score",code="OK"} 1 1700000000
plain 2.5e3
info{text="a \"b\" \\ , } \n"} 1
h_bucket{le="0.1"} 2
h_bucket{le="0.2"} 6
h_bucket{le="+Inf"} 8
h_count 8
)";

TEST(MetricsTextTest, SumsByLabels) {
  const auto page = MetricsText::Parse(kPage);
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_EQ(page->Sum("x_total"), 6);
  EXPECT_EQ(page->Sum("x_total", {{"code", "OK"}}), 4);
  EXPECT_EQ(page->Sum("x_total", {{"code", "OK"}, {"method", "Score"}}), 1);
  EXPECT_EQ(page->Sum("plain"), 2500);
  EXPECT_EQ(page->Sum("absent"), 0);
  EXPECT_EQ(page->Label("info", "text"), "a \"b\" \\ , } \n");
  EXPECT_EQ(page->Label("absent", "text"), "");
}

TEST(MetricsTextTest, QuantilesAreLinearInABucket) {
  const auto page = MetricsText::Parse(kPage);
  ASSERT_TRUE(page.ok());
  // Rank 4 of 8 is half way through the second bucket's four.
  EXPECT_NEAR(*page->Quantile("h", 0.5, nullptr), 0.15, 1e-9);
  EXPECT_NEAR(*page->Quantile("h", 0.99, nullptr), 0.2, 1e-9);
  EXPECT_FALSE(page->Quantile("absent", 0.5, nullptr).has_value());
  EXPECT_FALSE(page->Quantile("h", 0.5, &*page).has_value());
}

TEST(MetricsTextTest, AQuantileIsANumberOrNone) {
  const auto odd = MetricsText::Parse(
      "h_bucket{le=\"nan\"} 1\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"2\"} 4\n");
  ASSERT_TRUE(odd.ok());
  EXPECT_NEAR(*odd->Quantile("h", 0.75, nullptr), 1.5, 1e-9);
  const auto huge = MetricsText::Parse("h_bucket{le=\"1\"} inf\n");
  ASSERT_TRUE(huge.ok());
  EXPECT_FALSE(huge->Quantile("h", 0.5, nullptr).has_value());
}

TEST(MetricsTextTest, WhatIsNoPageIsSaidWithItsLine) {
  for (const char* bad :
       {"# ok\nnothing", "a{b=\"c\" 1", "a{b} 1", "a x", "<html>", "a "}) {
    const auto page = MetricsText::Parse(bad);
    EXPECT_TRUE(absl::IsInvalidArgument(page.status())) << bad;
    EXPECT_THAT(std::string(page.status().message()), HasSubstr("line"));
  }
  EXPECT_TRUE(MetricsText::Parse("").ok());
}

TEST(HttpGetTest, AddressesThatDoNotWork) {
  EXPECT_TRUE(absl::IsInvalidArgument(HttpGet("nowhere", "/").status()));
  EXPECT_TRUE(absl::IsUnavailable(HttpGet("127.0.0.1:1", "/").status()));
}

}  // namespace
}  // namespace xcache::command
