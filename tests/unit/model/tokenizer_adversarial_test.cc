// Tokenizers on text that is made to be hard: the ids are those of a merge that
// looks at every pair each time, and the time is that of ordinary text.
#include <time.h>

#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/utf8.h"
#include "engine/model/pretokenizer.h"
#include "engine/model/tokenizer.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"

namespace xcache {
namespace {

using testing::GgufWriter;
using testing::SpmVocabularyWriter;
using testing::TinyModelWriter;

struct Made {
  explicit Made(const GgufWriter& writer) : bytes(writer.Finish()) {
    auto parsed = GgufFile::Parse(
        {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()},
        "test.gguf");
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    gguf = *std::move(parsed);
    auto created = Tokenizer::Create(*gguf);
    EXPECT_TRUE(created.ok()) << created.status();
    tokenizer = *std::move(created);
  }
  const Tokenizer* operator->() const { return tokenizer.get(); }

  std::string bytes;
  std::unique_ptr<const GgufFile> gguf;
  std::unique_ptr<const Tokenizer> tokenizer;
};

using Random = std::mt19937_64;

size_t Below(Random& random, size_t n) { return random() % n; }

// Merges the pair of lowest rank, of equal ones the leftmost, by looking at all
// of them. `rank_of` two pieces: negative where they do not merge.
template <typename RankFn>
std::vector<std::string> MergeSlowly(std::vector<std::string> pieces,
                                     const RankFn& rank_of) {
  while (true) {
    double best = std::numeric_limits<double>::infinity();
    size_t at = 0;
    for (size_t i = 0; i + 1 < pieces.size(); ++i) {
      const double rank = rank_of(pieces[i], pieces[i + 1]);
      if (rank >= 0 && rank < best) {
        best = rank;
        at = i;
      }
    }
    if (best == std::numeric_limits<double>::infinity()) return pieces;
    pieces[at] += pieces[at + 1];
    pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

// Runs of few letters, which is what merges most.
std::string RandomWord(Random& random, const std::string& letters,
                       size_t length) {
  std::string word;
  while (word.size() < length) {
    const size_t run = 1 + Below(random, Below(random, 4) == 0 ? 40 : 3);
    word.append(std::min(run, length - word.size()),
                letters[Below(random, letters.size())]);
  }
  return word;
}

// Short words wait in one heap, long ones by rank: lengths on both sides.
size_t RandomLength(Random& random) {
  return Below(random, 8) == 0 ? 200 + Below(random, 400)
                               : 1 + Below(random, 40);
}

TEST(TokenizerOracleTest, BpeIdsAreThoseOfTheSlowestMerge) {
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    Random random(seed);
    const std::string letters = "abc";
    std::vector<std::string> symbols = {"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> merges;
    for (int i = 0; i < 60; ++i) {
      const std::string left = symbols[Below(random, symbols.size())];
      const std::string right = symbols[Below(random, symbols.size())];
      if (left.size() + right.size() > 60) continue;
      merges.emplace_back(left, right);
      symbols.push_back(left + right);
    }
    // Vocabularies are not always in the order in which they were learnt.
    if (seed % 2 == 0) std::shuffle(merges.begin(), merges.end(), random);

    GgufWriter writer = TinyModelWriter({.vocab_size = 259});
    const auto base = testing::MakeTinyModel({.vocab_size = 259});
    auto tokens = std::get<std::vector<std::string>>(
        base->gguf().metadata().find("tokenizer.ggml.tokens")->second);
    std::map<std::string, TokenId> ids;
    for (const char c : letters) {
      const std::string letter(1, c);
      ids[letter] = static_cast<TokenId>(std::ranges::find(tokens, letter) -
                                         tokens.begin());
    }
    std::vector<std::string> lines;
    std::map<std::pair<std::string, std::string>, int> ranks;
    for (const auto& [left, right] : merges) {
      ranks.try_emplace({left, right}, static_cast<int>(lines.size()));
      lines.push_back(left + " " + right);
      // Some are only on the way to tokens.
      if (Below(random, 5) == 0 || ids.contains(left + right)) continue;
      ids[left + right] = static_cast<TokenId>(tokens.size());
      tokens.push_back(left + right);
    }
    std::vector<int32_t> types(tokens.size(), 1);
    types[0] = types[1] = types[2] = 3;
    writer.SetStrings("tokenizer.ggml.tokens", tokens);
    writer.SetInts("tokenizer.ggml.token_type", types);
    writer.SetStrings("tokenizer.ggml.merges", lines);
    const Made made{writer};

    for (int i = 0; i < 60; ++i) {
      const std::string word =
          RandomWord(random, letters, RandomLength(random));
      std::vector<std::string> pieces;
      for (const char c : word) pieces.emplace_back(1, c);
      pieces =
          MergeSlowly(std::move(pieces), [&](const auto& l, const auto& r) {
            const auto it = ranks.find({l, r});
            return it == ranks.end() ? -1.0 : it->second;
          });
      std::vector<TokenId> expected;
      for (const std::string& piece : pieces) {
        if (ids.contains(piece)) {
          expected.push_back(ids[piece]);
          continue;
        }
        for (const char c : piece) expected.push_back(ids[std::string(1, c)]);
      }
      ASSERT_EQ(made->Encode(word).value(), expected)
          << "seed " << seed << ", word " << word;
    }
  }
}

TEST(TokenizerOracleTest, SpmIdsAreThoseOfTheSlowestMerge) {
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    Random random(seed);
    const std::string letters = "abcd";  // of which "d" may be no piece
    std::vector<std::string> pieces = {"a", "b", "c"};
    if (seed % 3 == 0) pieces.push_back("d");
    const size_t singles = pieces.size();
    while (pieces.size() < 50) {
      std::string piece = RandomWord(random, letters, 2 + Below(random, 6));
      if (std::ranges::find(pieces, piece) == pieces.end()) {
        pieces.push_back(std::move(piece));
      }
    }
    // Few scores, so that many pairs are equal but for their place.
    const size_t num_scores = 1 + Below(random, 5);
    std::map<std::string, std::pair<TokenId, double>> known;
    std::vector<float> scores(259, 0.0f);
    for (size_t i = 0; i < pieces.size(); ++i) {
      const auto rank = static_cast<double>(Below(random, num_scores));
      scores.push_back(i < singles ? -100.0f : -static_cast<float>(rank));
      known[pieces[i]] = {static_cast<TokenId>(259 + i),
                          i < singles ? 100.0 : rank};
    }
    GgufWriter writer = SpmVocabularyWriter(pieces);
    writer.SetFloats("tokenizer.ggml.scores", scores);
    writer.SetBool("tokenizer.ggml.add_space_prefix", false);
    const Made made{writer};

    for (int i = 0; i < 60; ++i) {
      const std::string word =
          RandomWord(random, letters, RandomLength(random));
      std::vector<std::string> merged;
      for (const char c : word) merged.emplace_back(1, c);
      merged =
          MergeSlowly(std::move(merged), [&](const auto& l, const auto& r) {
            const auto it = known.find(l + r);
            return it == known.end() ? -1.0 : it->second.second;
          });
      std::vector<TokenId> expected;
      for (const std::string& piece : merged) {
        const auto it = known.find(piece);
        expected.push_back(it != known.end() ? it->second.first
                                             : 3 + piece[0]);  // its byte
      }
      ASSERT_EQ(made->Encode(word).value(), expected)
          << "seed " << seed << ", word " << word;
    }
  }
}

// Seconds of this thread's CPU, so that a busy machine does not count.
double CpuSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) +
         1e-9 * static_cast<double>(now.tv_nsec);
}

double BestSeconds(const Tokenizer& tokenizer, const std::string& text) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 3; ++i) {
    const double start = CpuSeconds();
    EXPECT_TRUE(tokenizer.Encode(text).ok());
    best = std::min(best, CpuSeconds() - start);
  }
  return best;
}

std::string Repeated(std::string_view text, size_t bytes) {
  std::string out;
  while (out.size() < bytes) out += text;
  return out;
}

TEST(TokenizerCostTest, NoTextCostsManyTimesWhatOrdinaryTextDoes) {
  constexpr size_t kBytes = 1 << 18;
  Random random(7);
  std::string ordinary, letters;
  while (ordinary.size() < kBytes) {
    ordinary += RandomWord(random, "etaoinshrdlu", 1 + Below(random, 9)) + " ";
  }
  while (letters.size() < kBytes) {
    letters.push_back(static_cast<char>('a' + Below(random, 26)));
  }
  std::string spaces_of_many_lengths;
  for (size_t n = 1; spaces_of_many_lengths.size() < kBytes; ++n) {
    spaces_of_many_lengths += std::string(n, ' ') + "x";
  }
  const std::pair<const char*, std::string> texts[] = {
      {"spaces", std::string(kBytes, ' ')},
      {"one letter", std::string(kBytes, 'a')},
      {"digits", std::string(kBytes, '7')},
      {"random letters", letters},
      {"CJK", Repeated("\xe6\x9d\xb1\xe4\xba\xac\xe9\x83\xbd", kBytes)},
      {"line ends", Repeated("\r\n", kBytes)},
      {"spaces before a line end", Repeated(" ", kBytes) + "\nx"},
      {"runs of spaces", spaces_of_many_lengths},
      {"openings of a marker", std::string(kBytes, '<')},
      {"parts of a marker", Repeated("<|im_start|", kBytes)},
      {"points", std::string(kBytes, '.')},
  };
  std::vector<std::pair<const char*, GgufWriter>> families;
  for (const char* pre : {"smollm", "gpt-2", "llama-bpe", "qwen2"}) {
    GgufWriter writer = TinyModelWriter({.vocab_size = 700});
    writer.SetString("tokenizer.ggml.pre", pre);
    families.emplace_back(pre, std::move(writer));
  }
  families.emplace_back(
      "spm", SpmVocabularyWriter({"\xe2\x96\x81", "aa", "aaaa", "a", "e", "t",
                                  "th", "in", "an", "7", "77", "..",
                                  "\xe2\x96\x81\xe2\x96\x81"}));
  for (const auto& [name, writer] : families) {
    const Made made{writer};
    const double usual = BestSeconds(*made.tokenizer, ordinary) /
                         static_cast<double>(ordinary.size());
    for (const auto& [what, text] : texts) {
      const double cost =
          BestSeconds(*made.tokenizer, text) / static_cast<double>(text.size());
      RecordProperty(std::string(name) + " " + what + " MB/s",
                     std::to_string(1e-6 / cost));
      EXPECT_LT(cost, 15 * usual) << name << ", " << what << ": " << 1e9 * cost
                                 << " ns a byte, ordinary text " << 1e9 * usual;
    }
  }
}

TEST(TokenizerBoundTest, NoTokenStandsForMoreBytesThanTheMost) {
  Random random(3);
  std::vector<GgufWriter> writers;
  writers.push_back(TinyModelWriter({.vocab_size = 700}));
  writers.push_back(SpmVocabularyWriter(
      {"a", "aaaa", "\xe2\x96\x81", "\xe2\x96\x81\xe2\x96\x81"}));
  for (const GgufWriter& writer : writers) {
    const Made made{writer};
    const size_t most = made->max_token_bytes();
    ASSERT_GT(most, 1u);
    for (TokenId id = 0; id < made->vocab_size(); ++id) {
      EXPECT_LE(made->TokenBytes(id, true).size(), most);
    }
    for (const std::string& text :
         {std::string(4000, 'a'), std::string(4000, ' '),
          Repeated("\xe2\x96\x81", 3999), Repeated("<|im_start|>", 3996)}) {
      EXPECT_GE(made->Encode(text).value().size() * most, text.size());
      EXPECT_GE(made->EncodeWithSpecial(text).value().size() * most,
                text.size());
    }
  }
}

TEST(TokenizerBoundTest, UnknownWhereSomeTextBecomesNoToken) {
  GgufWriter writer = TinyModelWriter({.vocab_size = 259});
  std::vector<std::string> tokens = {"<|endoftext|>", "a", "b"};
  std::vector<int32_t> types = {3, 1, 1};
  writer.SetStrings("tokenizer.ggml.tokens", tokens);
  writer.SetInts("tokenizer.ggml.token_type", types);
  writer.SetStrings("tokenizer.ggml.merges", std::vector<std::string>{});
  writer.SetUint32("tokenizer.ggml.bos_token_id", 0);
  writer.SetUint32("tokenizer.ggml.eos_token_id", 0);
  const Made made{writer};
  EXPECT_EQ(made->max_token_bytes(), 0u);
}

// Unicode's White_Space, as PropList.txt has had it since Unicode 6.3.
bool IsWhiteSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
         c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

TEST(PretokenizerTest, WhiteSpaceIsUnicodes) {
  for (const char* family : {"gpt-2", "llama-bpe"}) {
    std::string known;
    const auto pretokenizer =
        Pretokenizer::Create(*FindPretokenizer(family, &known));
    ASSERT_TRUE(pretokenizer.ok()) << pretokenizer.status();
    for (uint32_t c = 1; c < 0x110000; c += c < 0x3100 ? 1 : 61) {
      if (c >= 0xd800 && c < 0xe000) continue;
      // Line ends stay together there.
      if (family == std::string("llama-bpe") && (c == '\r' || c == '\n')) {
        continue;
      }
      std::string one, text = "x";
      AppendUtf8(c, &one);
      text += one + one + "y";
      std::vector<std::string_view> words;
      ASSERT_TRUE(pretokenizer->Split(text, &words).ok());
      // Two of white space are two words, two of anything else are one.
      EXPECT_EQ(words.size() > 1 && words[1] == one, IsWhiteSpace(c))
          << family << ", U+" << std::hex << c;
    }
  }
}

}  // namespace
}  // namespace xcache
