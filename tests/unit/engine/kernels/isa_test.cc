#include "engine/kernels/isa.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "engine/kernels/kernels.h"

namespace xcache {
namespace {

class IsaTest : public testing::Test {
 protected:
  void SetUp() override { unsetenv("XCACHE_FORCE_ISA"); }
  void TearDown() override { unsetenv("XCACHE_FORCE_ISA"); }
};

TEST_F(IsaTest, ReferenceRunsEverywhere) {
  EXPECT_TRUE(IsaSupported(Isa::kRef));
  const auto isa = ChooseIsa("ref");
  ASSERT_TRUE(isa.ok()) << isa.status();
  EXPECT_EQ(*isa, Isa::kRef);
}

TEST_F(IsaTest, TakesTheBestByDefault) {
  const auto isa = ChooseIsa("");
  ASSERT_TRUE(isa.ok()) << isa.status();
  for (const Isa better : {Isa::kAvx2, Isa::kAvx512}) {
    if (better > *isa) {
      EXPECT_FALSE(IsaSupported(better));
    }
  }
  EXPECT_TRUE(IsaSupported(*isa));
}

TEST_F(IsaTest, EnvironmentForcesOne) {
  setenv("XCACHE_FORCE_ISA", "ref", 1);
  const auto isa = ChooseIsa("");
  ASSERT_TRUE(isa.ok()) << isa.status();
  EXPECT_EQ(*isa, Isa::kRef);
}

TEST_F(IsaTest, UnknownNameIsInvalidArgument) {
  EXPECT_EQ(ChooseIsa("sse9").status().code(),
            absl::StatusCode::kInvalidArgument);
  setenv("XCACHE_FORCE_ISA", "AVX2", 1);
  EXPECT_EQ(ChooseIsa("").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(IsaTest, OneThatTheMachineLacksIsFailedPrecondition) {
  bool lacks_one = false;
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    if (IsaSupported(isa)) continue;
    lacks_one = true;
    EXPECT_EQ(ChooseIsa(IsaName(isa)).status().code(),
              absl::StatusCode::kFailedPrecondition);
  }
  if (!lacks_one) GTEST_SKIP() << "this machine has every instruction set";
}

TEST_F(IsaTest, EveryTableIsCompleteAndOfItsSet) {
  for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
    if (!IsaSupported(isa)) continue;
    const Kernels& table = GetKernels(isa);
    EXPECT_EQ(table.isa, isa);
    EXPECT_NE(table.quantize_rows, nullptr);
    EXPECT_NE(table.quant_matmul, nullptr);
    EXPECT_NE(table.quant_gate_up, nullptr);
    EXPECT_NE(table.float_matmul, nullptr);
    EXPECT_NE(table.rms_norm, nullptr);
    EXPECT_NE(table.silu_mul, nullptr);
    EXPECT_NE(table.gelu_mul, nullptr);
    EXPECT_NE(table.add, nullptr);
    EXPECT_NE(table.rope, nullptr);
    EXPECT_NE(table.to_f16, nullptr);
    EXPECT_NE(table.from_f16, nullptr);
    EXPECT_NE(table.attention_chunk, nullptr);
    EXPECT_NE(table.attention_merge, nullptr);
    EXPECT_NE(table.attention_finish, nullptr);
  }
}

}  // namespace
}  // namespace xcache
