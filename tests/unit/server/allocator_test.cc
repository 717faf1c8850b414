#include "server/allocator.h"

#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace xcache {
namespace {

constexpr int64_t kMib = int64_t{1} << 20;

// Sanitizers have allocators of their own.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif
#else
constexpr bool kSanitized = false;
#endif

// Small pieces of which a few stay, as pages stay between a flood's calls.
std::vector<std::unique_ptr<char[]>> MakeHoles(size_t num_bytes) {
  constexpr size_t kPiece = 16 << 10;
  std::vector<std::unique_ptr<char[]>> pieces;
  for (size_t done = 0; done < num_bytes; done += kPiece) {
    pieces.push_back(std::make_unique<char[]>(kPiece));
    std::memset(pieces.back().get(), 1, kPiece);
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (i % 16 != 0) pieces[i].reset();
  }
  return pieces;
}

TEST(HeapTrimmerTest, HolesBetweenWhatStaysGoBack) {
  if (kSanitized) GTEST_SKIP() << "sanitizers have allocators of their own";
  BoundAllocator();
  const int64_t before = ResidentBytes();
  ASSERT_GT(before, 0);
  HeapTrimmer trimmer(std::chrono::milliseconds(10), kMib);
  const auto stays = MakeHoles(64 << 20);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (ResidentBytes() > before + 16 * kMib &&
         std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  // The sixteenth that stays, and pages that it lies in.
  EXPECT_LE(ResidentBytes(), before + 16 * kMib);
  EXPECT_EQ(stays.front()[0], 1);
}

TEST(HeapTrimmerTest, WithoutOneTheyStay) {
  if (kSanitized) GTEST_SKIP() << "sanitizers have allocators of their own";
  BoundAllocator();
  const int64_t before = ResidentBytes();
  const auto stays = MakeHoles(64 << 20);
  EXPECT_GT(ResidentBytes(), before + 48 * kMib);
}

}  // namespace
}  // namespace xcache
