// The emulation is only worth something if wrong code shows on it: streams that
// lack a wait, threads that read what others write, memory used after it was
// freed.
#include "engine/emulation/host_ops.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "engine/device/kernels/thread_block.h"
#include "gtest/gtest.h"

namespace xcache::cuda {
namespace {

// Copies a value to the device on one stream and back on the other.
int RoundTrip(uint32_t seed, bool wait) {
  HostOpsOptions options;
  options.seed = seed;
  const auto ops = MakeHostOps(options);
  auto* device = static_cast<int*>(ops->Allocate(sizeof(int)));
  const int from = 42;
  int to = 0;
  ops->CopyToDevice(StreamId::kCopy, device, &from, sizeof(int));
  ops->Record(StreamId::kCopy, 0);
  if (wait) ops->Wait(StreamId::kCompute, 0);
  ops->CopyToHost(StreamId::kCompute, &to, device, sizeof(int));
  ops->Synchronize(StreamId::kCompute);
  ops->Free(device);
  return to;
}

TEST(HostOpsTest, StreamsRunOutOfStepWithoutAWaitAndInOrderWithOne) {
  int stale = 0;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    EXPECT_EQ(RoundTrip(seed, true), 42) << seed;
    if (RoundTrip(seed, false) != 42) ++stale;
  }
  EXPECT_GT(stale, 0);
}

TEST(HostOpsTest, CopiesReadTheirSourceWhenTheyRun) {
  const auto ops = MakeHostOps({});
  auto* device = static_cast<int*>(ops->Allocate(sizeof(int)));
  int staging = 1, to = 0;
  ops->CopyToDevice(StreamId::kCompute, device, &staging, sizeof(int));
  ops->Record(StreamId::kCompute, 0);
  staging = 2;  // too early: nobody has waited
  ops->WaitForEvent(0);
  staging = 3;  // in time
  ops->CopyToHost(StreamId::kCompute, &to, device, sizeof(int));
  ops->Synchronize(StreamId::kCompute);
  EXPECT_EQ(to, 2);
  ops->Free(device);
}

TEST(HostOpsTest, FreshMemoryIsNoNumber) {
  const auto ops = MakeHostOps({});
  auto* p = static_cast<float*>(ops->Allocate(4 * sizeof(float)));
  EXPECT_TRUE(std::isnan(p[3]));
  ops->Free(p);
}

// A body that breaks the rule: each thread reads what its neighbour writes.
std::vector<int> Chain(ThreadOrder order) {
  HostBlock block(order);
  std::vector<int> values(kThreads + 1);
  block.ForThreads([&](int thread) {
    values[static_cast<size_t>(thread + 1)] =
        values[static_cast<size_t>(thread)] + 1;
  });
  return values;
}

TEST(HostBlockTest, ThreadsThatReadEachOthersWritesShow) {
  EXPECT_NE(Chain(ThreadOrder::kForward), Chain(ThreadOrder::kBackward));
  EXPECT_NE(Chain(ThreadOrder::kForward), Chain(ThreadOrder::kScattered));
}

TEST(HostBlockTest, CopiesArriveAsEarlyOrAsLateAsTheyMay) {
  for (ThreadOrder order : {ThreadOrder::kForward, ThreadOrder::kBackward,
                            ThreadOrder::kScattered}) {
    HostBlock block(order);
    alignas(16) int from[4] = {1, 2, 3, 4};
    alignas(16) int to[4] = {};
    block.CopyAsync(to, from);
    EXPECT_EQ(to[3], order == ThreadOrder::kBackward ? 4 : 0);
    block.FinishCopies();
    EXPECT_EQ(to[3], 4);
  }
}

TEST(HostBlockTest, EveryOrderRunsEveryThreadOnce) {
  for (ThreadOrder order : {ThreadOrder::kForward, ThreadOrder::kBackward,
                            ThreadOrder::kScattered}) {
    HostBlock block(order);
    HostBlock::PerThread<int> own;
    block.ForThreads([&](int thread) { ++own(thread); });
    for (int thread = 0; thread < kThreads; ++thread) {
      EXPECT_EQ(own(thread), 1) << thread;
    }
  }
}

}  // namespace
}  // namespace xcache::cuda
