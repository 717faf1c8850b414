#include "engine/base/sha256.h"

#include <string>

#include "gtest/gtest.h"

namespace xcache {
namespace {

// FIPS 180-4 examples.
TEST(Sha256Test, KnownVectors) {
  EXPECT_EQ(ToHex(Sha256Of("")),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(ToHex(Sha256Of("abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Sha256Test, PartsAddUp) {
  EXPECT_EQ(Sha256().Update("a").Update("").Update("bc").Finish(),
            Sha256Of("abc"));
}

TEST(Sha256Test, FieldsDoNotRunTogether) {
  EXPECT_NE(Sha256().Field("ab").Field("c").Finish(),
            Sha256().Field("a").Field("bc").Finish());
}

}  // namespace
}  // namespace xcache
