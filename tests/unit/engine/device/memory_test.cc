#include "engine/device/memory.h"

#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "engine/device/table_upload.h"
#include "engine/emulation/host_ops.h"
#include "gtest/gtest.h"

namespace xcache::cuda {
namespace {

std::shared_ptr<DeviceOps> Ops(size_t memory_bytes = 0) {
  HostOpsOptions options;
  options.memory_bytes = memory_bytes;
  return MakeHostOps(options);
}

TEST(DevicePoolTest, HoldsNoMoreThanItsCap) {
  auto pool = std::make_shared<DevicePool>(Ops(), 10240);
  std::vector<PoolPiece> pieces;
  for (int i = 0; i < 10; ++i) {
    pieces.emplace_back(pool, 1000);  // 1024 each
    EXPECT_NE(pieces.back().get(), nullptr) << i;
    EXPECT_LE(pool->held_bytes(), 10240u);
  }
  EXPECT_EQ(pool->used_bytes(), 10240u);
  EXPECT_EQ(PoolPiece(pool, 1).get(), nullptr);
  std::set<void*> distinct;
  for (const PoolPiece& piece : pieces) distinct.insert(piece.get());
  EXPECT_EQ(distinct.size(), 10u);
  pieces.pop_back();
  EXPECT_NE(PoolPiece(pool, 1000).get(), nullptr);
}

TEST(DevicePoolTest, WhatIsFreeOfOneSizeServesAnother) {
  auto pool = std::make_shared<DevicePool>(Ops(), 4096);
  {
    PoolPiece a(pool, 1024), b(pool, 1024);
    EXPECT_EQ(PoolPiece(pool, 4096).get(), nullptr);
    EXPECT_NE(a.get(), nullptr);
    EXPECT_NE(b.get(), nullptr);
  }
  EXPECT_EQ(pool->used_bytes(), 0u);
  PoolPiece whole(pool, 4096);
  EXPECT_NE(whole.get(), nullptr);
  EXPECT_EQ(pool->held_bytes(), 4096u);
}

TEST(DevicePoolTest, OnePieceOfASizeDoesNotTakeThePool) {
  auto pool = std::make_shared<DevicePool>(Ops(), 64 * 1024);
  PoolPiece small(pool, 512), large(pool, 16 * 1024), other(pool, 1024);
  EXPECT_NE(small.get(), nullptr);
  EXPECT_NE(large.get(), nullptr);
  EXPECT_NE(other.get(), nullptr);
  EXPECT_LE(pool->held_bytes(), size_t{24 * 1024});
}

TEST(DevicePoolTest, ADeviceWithoutMemoryIsNoFailure) {
  auto pool = std::make_shared<DevicePool>(Ops(2048), size_t{1} << 30);
  PoolPiece a(pool, 1024), b(pool, 1024), c(pool, 1024);
  EXPECT_NE(a.get(), nullptr);
  EXPECT_NE(b.get(), nullptr);
  EXPECT_EQ(c.get(), nullptr);
}

TEST(DevicePoolTest, PiecesMoveAndAreFreedOnce) {
  auto pool = std::make_shared<DevicePool>(Ops(), 4096);
  PoolPiece a(pool, 1024);
  void* const at = a.get();
  PoolPiece b = std::move(a);
  EXPECT_EQ(b.get(), at);
  a = std::move(b);
  EXPECT_EQ(a.get(), at);
  a = PoolPiece();
  EXPECT_EQ(pool->used_bytes(), 0u);
}

TEST(DeviceMemoryTest, GrowsAndSaysWhenItCannot) {
  const auto ops = Ops(4096);
  DeviceMemory memory(*ops);
  EXPECT_TRUE(memory.Reserve(1000).ok());
  void* const first = memory.as<void>();
  EXPECT_TRUE(memory.Reserve(500).ok());
  EXPECT_EQ(memory.as<void>(), first);
  // Half as much again does not fit, the size itself does.
  EXPECT_TRUE(memory.Reserve(3500).ok());
  EXPECT_EQ(memory.Reserve(5000).code(), absl::StatusCode::kResourceExhausted);
}

TEST(TableUploadTest, ArraysArriveWhereTheirHandlesSay) {
  const auto ops = Ops();
  TableUpload tables(*ops);
  for (int round = 0; round < 2; ++round) {
    tables.Clear();
    const size_t bytes = tables.Add(std::vector<uint8_t>{1, 2, 3});
    const size_t none = tables.Add(std::vector<int64_t>{});
    const size_t longs = tables.Add(std::vector<int64_t>{-5, round});
    ASSERT_TRUE(tables.Upload().ok());
    ops->Synchronize(StreamId::kCompute);
    EXPECT_EQ(tables.At<uint8_t>(bytes)[2], 3);
    EXPECT_EQ(tables.At<int64_t>(longs)[0], -5);
    EXPECT_EQ(tables.At<int64_t>(longs)[1], round);
    EXPECT_LE(none, longs);
  }
}

}  // namespace
}  // namespace xcache::cuda
