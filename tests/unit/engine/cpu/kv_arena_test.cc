#include "engine/cpu/kv_arena.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace xcache {
namespace {

constexpr size_t kBlock = 1500000;  // not a multiple of a page

TEST(KvArenaTest, BlocksAreAlignedAndDoNotOverlap) {
  KvArena arena(kBlock);
  EXPECT_GE(arena.block_bytes(), kBlock);
  std::vector<uint8_t*> blocks;
  for (int i = 0; i < 50; ++i) {
    auto* block = static_cast<uint8_t*>(arena.Allocate());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(block) % 64, 0u);
    std::memset(block, i, kBlock);
    blocks.push_back(block);
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_EQ(blocks[i][0], i);
    EXPECT_EQ(blocks[i][kBlock - 1], i);
  }
  EXPECT_EQ(arena.resident_bytes(), 50 * arena.block_bytes());
  for (uint8_t* block : blocks) arena.Free(block);
}

TEST(KvArenaTest, FreedMemoryIsGivenBackButForASlab) {
  KvArena arena(kBlock);
  std::vector<void*> blocks;
  for (int i = 0; i < 100; ++i) {
    blocks.push_back(arena.Allocate());
    std::memset(blocks.back(), 1, kBlock);
  }
  std::mt19937 gen(1);
  std::shuffle(blocks.begin(), blocks.end(), gen);
  for (void* block : blocks) arena.Free(block);
  EXPECT_LE(arena.resident_bytes(), size_t{32} << 20);
}

// Bytes of this process that the kernel may back with huge pages: all of a
// huge page where one byte of it is touched, or where it thinks fit.
size_t HugeBytes() {
  std::ifstream maps("/proc/self/smaps");
  size_t total = 0, kib = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.starts_with("Size:")) kib = std::stoul(line.substr(5));
    if (line.starts_with("VmFlags:") && line.find(" hg") != line.npos) {
      total += kib << 10;
    }
  }
  return total;
}

TEST(KvArenaTest, HugePagesDoNotBringFreedMemoryBack) {
  const size_t before = HugeBytes();
  KvArena arena(kBlock);
  std::vector<void*> blocks;
  for (int i = 0; i < 200; ++i) {
    blocks.push_back(arena.Allocate());
    std::memset(blocks.back(), 1, kBlock);
  }
  if (HugeBytes() == before) GTEST_SKIP() << "the kernel has no huge pages";
  EXPECT_GE(HugeBytes() - before, 200 * kBlock);
  // Every slab keeps a block or more.
  std::vector<void*> kept;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (i % 10 == 0) {
      kept.push_back(blocks[i]);
    } else {
      arena.Free(blocks[i]);
    }
  }
  // The last slab has blocks that were never used.
  EXPECT_LE(HugeBytes() - before, arena.resident_bytes() + (size_t{34} << 20));
  for (int i = 0; i < 180; ++i) kept.push_back(arena.Allocate());
  EXPECT_GE(HugeBytes() - before, 200 * kBlock);
  for (void* block : kept) arena.Free(block);
}

TEST(KvArenaTest, FreedBlocksAreUsedAgain) {
  KvArena arena(kBlock);
  void* a = arena.Allocate();
  void* b = arena.Allocate();
  arena.Free(a);
  EXPECT_EQ(arena.Allocate(), a);
  arena.Free(a);
  arena.Free(b);
}

TEST(KvArenaTest, BlocksLargerThanASlabWork) {
  KvArena arena(size_t{40} << 20);
  auto* a = static_cast<uint8_t*>(arena.Allocate());
  auto* b = static_cast<uint8_t*>(arena.Allocate());
  EXPECT_GE(a > b ? a - b : b - a, ptrdiff_t{40} << 20);
  a[0] = b[(size_t{40} << 20) - 1] = 1;
  arena.Free(b);
  arena.Free(a);
}

TEST(KvArenaTest, ManyThreadsMayAllocateAndFree) {
  KvArena arena(100000);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&arena, t] {
      std::mt19937 gen(static_cast<uint32_t>(t));
      std::vector<uint8_t*> mine;
      for (int i = 0; i < 2000; ++i) {
        if (mine.empty() || gen() % 2 == 0) {
          mine.push_back(static_cast<uint8_t*>(arena.Allocate()));
          *mine.back() = static_cast<uint8_t>(t);
        } else {
          std::swap(mine[gen() % mine.size()], mine.back());
          EXPECT_EQ(*mine.back(), t);
          arena.Free(mine.back());
          mine.pop_back();
        }
      }
      for (uint8_t* block : mine) arena.Free(block);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(arena.resident_bytes(), size_t{32} << 20);
}

}  // namespace
}  // namespace xcache
