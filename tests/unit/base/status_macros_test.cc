#include "engine/base/status_macros.h"

#include <memory>

#include "gtest/gtest.h"

namespace xcache {
namespace {

absl::StatusOr<std::unique_ptr<int>> Half(int n) {
  if (n % 2 != 0) return absl::InvalidArgumentError("odd");
  return std::make_unique<int>(n / 2);
}

absl::StatusOr<int> Quarter(int n) {
  XC_ASSIGN_OR_RETURN(std::unique_ptr<int> half, Half(n));
  XC_ASSIGN_OR_RETURN(half, Half(*half));
  XC_RETURN_IF_ERROR(absl::OkStatus());
  return *half;
}

TEST(StatusMacrosTest, ValuesMoveThroughAndErrorsReturn) {
  EXPECT_EQ(*Quarter(12), 3);
  EXPECT_EQ(Quarter(3).status().message(), "odd");
  EXPECT_EQ(Quarter(6).status().message(), "odd");
}

}  // namespace
}  // namespace xcache
