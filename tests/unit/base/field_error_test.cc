#include "engine/base/field_error.h"

#include "gtest/gtest.h"

namespace xcache {
namespace {

TEST(FieldErrorTest, NamesTheFieldWhatItTakesAndWhatItWas) {
  const absl::Status status = FieldError("top_k", "at least 0", -1);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(status.message(), "top_k must be at least 0, not -1");
  EXPECT_EQ(FieldError("title", "UTF-8", "other bytes").message(),
            "title must be UTF-8, not other bytes");
}

}  // namespace
}  // namespace xcache
