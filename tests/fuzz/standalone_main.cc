// Runs a fuzz test without libFuzzer: its own seeds, the files named on the
// command line (folders: all files in them), and a fixed number of mutations of
// each, the same ones every time. It has no coverage to go by: the fuzzing is
// libFuzzer's work, this keeps the fuzz tests alive in every build.
//
//   gguf_fuzz [--runs=N] [file or folder]...
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string_view>

#include "tests/fuzz/fuzz.h"

namespace {

// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  size_t Below(size_t n) { return n == 0 ? 0 : Next() % n; }

 private:
  uint64_t state_;
};

// Values that lengths, counts and offsets go wrong at.
constexpr uint64_t kEdges[] = {0,          1,          0x7f,
                               0x80,       0xff,       0x7fff,
                               0xffff,     0x7fffffff, 0x80000000,
                               0xffffffff, 1ull << 62, 0x7fffffffffffffff,
                               1ull << 63, ~0ull - 7,  ~0ull};

// Positions near the front are taken more often: headers are there.
size_t Position(Random* random, size_t size) {
  const size_t limit =
      random->Below(2) == 0 ? std::min<size_t>(size, 512) : size;
  return random->Below(limit);
}

void Mutate(Random* random, std::string* s) {
  for (size_t n = 1 + random->Below(4); n > 0; --n) {
    const size_t at = Position(random, s->size());
    switch (random->Below(6)) {
      case 0:  // flip a bit
        if (!s->empty()) {
          (*s)[at] = static_cast<char>((*s)[at] ^ (1 << random->Below(8)));
        }
        break;
      case 1:  // set a byte
        if (!s->empty()) (*s)[at] = static_cast<char>(random->Next());
        break;
      case 2: {  // an edge value of 1, 2, 4 or 8 bytes
        const uint64_t edge = kEdges[random->Below(std::size(kEdges))];
        const size_t width = size_t{1} << random->Below(4);
        for (size_t i = 0; i < width && at + i < s->size(); ++i) {
          (*s)[at + i] = static_cast<char>(edge >> (8 * i));
        }
        break;
      }
      case 3:  // truncate
        s->resize(at);
        break;
      case 4:  // cut a piece out
        s->erase(at, 1 + random->Below(16));
        break;
      default: {  // repeat a piece
        const std::string piece = s->substr(at, 1 + random->Below(16));
        s->insert(Position(random, s->size()), piece);
        break;
      }
    }
  }
}

void RunOne(const std::string& input) {
  // A copy of exact size on the heap: an overrun is one of the allocation.
  const std::vector<uint8_t> bytes(input.begin(), input.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    std::fprintf(stderr, "%s: cannot be read\n", path.c_str());
    std::exit(2);
  }
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace

int main(int argc, char** argv) {
  size_t runs = 1000;
  std::vector<std::string> seeds = XcacheFuzzSeeds();
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (arg.starts_with("--runs=")) {
      runs = std::strtoul(argv[i] + 7, nullptr, 10);
    } else if (std::filesystem::is_directory(argv[i])) {
      std::vector<std::filesystem::path> files;
      for (const auto& entry : std::filesystem::directory_iterator(argv[i])) {
        files.push_back(entry.path());
      }
      std::sort(files.begin(), files.end());
      for (const auto& file : files) seeds.push_back(ReadFile(file));
    } else {
      seeds.push_back(ReadFile(argv[i]));
    }
  }
  if (seeds.empty()) {
    std::fprintf(stderr, "no seeds\n");
    return 2;
  }
  RunOne("");
  for (size_t s = 0; s < seeds.size(); ++s) {
    RunOne(seeds[s]);
    for (size_t run = 0; run < runs; ++run) {
      Random random(s * 0x100000001b3u + run);
      std::string input = seeds[s];
      Mutate(&random, &input);
      RunOne(input);
    }
  }
  std::printf("%zu seeds, %zu mutations of each\n", seeds.size(), runs);
  return 0;
}
