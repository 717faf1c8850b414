// Text of any bytes to tokens and back, with both kinds of tokenizer: what is
// UTF-8 comes back byte for byte, anything else is refused.
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "engine/base/utf8.h"
#include "engine/model/tokenizer.h"
#include "tests/fuzz/fuzz.h"
#include "tests/support/tiny_model.h"

namespace {

using xcache::GgufFile;
using xcache::TokenId;
using xcache::Tokenizer;

// Made once; the tokenizer borrows from the file and that from the bytes.
struct Made {
  explicit Made(const xcache::testing::GgufWriter& writer)
      : bytes(writer.Finish()) {
    auto file = GgufFile::Parse(
        {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "fuzz");
    XCACHE_FUZZ_CHECK(file.ok());
    gguf = *std::move(file);
    auto created = Tokenizer::Create(*gguf);
    XCACHE_FUZZ_CHECK(created.ok());
    tokenizer = *std::move(created);
  }
  std::string bytes;
  std::unique_ptr<const GgufFile> gguf;
  std::unique_ptr<const Tokenizer> tokenizer;
};

void Check(const Tokenizer& tokenizer, std::string_view text,
           bool space_prefix) {
  const bool valid = xcache::FindInvalidUtf8(text) == text.npos;
  const auto plain = tokenizer.Encode(text);
  const auto special = tokenizer.EncodeWithSpecial(text);
  const auto continued = tokenizer.EncodeContinued(text);
  XCACHE_FUZZ_CHECK(plain.ok() == valid && special.ok() == valid &&
                    continued.ok() == valid);
  if (!valid) return;
  for (TokenId id : *plain) {
    XCACHE_FUZZ_CHECK(id >= 0 && id < tokenizer.vocab_size());
    XCACHE_FUZZ_CHECK(!tokenizer.IsSpecial(id));
  }
  const std::string prefix = space_prefix && !text.empty() ? " " : "";
  XCACHE_FUZZ_CHECK(tokenizer.Decode(*plain) == prefix + std::string(text));
  XCACHE_FUZZ_CHECK(tokenizer.Decode(*continued) == text);
  // With special tokens each stretch between them gets a space.
  if (!space_prefix) {
    XCACHE_FUZZ_CHECK(tokenizer.Decode(*special, true) == text);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto* const kBpe =
      new Made(xcache::testing::TinyModelWriter({}));
  static const auto* const kSpm = new Made(xcache::testing::SpmVocabularyWriter(
      {"\xe2\x96\x81", "a", "b", "in", "i", "n", "\xe2\x96\x81in", "\n"}));
  const std::string_view text(reinterpret_cast<const char*>(data), size);

  const size_t whole = xcache::CompleteUtf8Prefix(text);
  XCACHE_FUZZ_CHECK(whole <= size && size - whole <= 3);
  // Whatever was held back, a letter behind it settles it.
  XCACHE_FUZZ_CHECK(xcache::CompleteUtf8Prefix(std::string(text) + "a") ==
                    size + 1);
  if (xcache::FindInvalidUtf8(text) == text.npos) {
    XCACHE_FUZZ_CHECK(whole == size);
  }
  Check(*kBpe->tokenizer, text, /*space_prefix=*/false);
  // A literal U+2581 is a space to SentencePiece and would not come back.
  if (text.find("\xe2\x96\x81") == text.npos) {
    Check(*kSpm->tokenizer, text, /*space_prefix=*/true);
  }
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  return {"Hello, world! It's 2024, isn't it?\n\n  indented\ttabbed  \r\n",
          "naïve Ünïcödé, 東京都 😀👩‍👩‍👧 ½ ١٢٣ "
          "नमस्ते "
          "e\xcc\x81",
          "<|im_start|>user\nhi<|im_end|>\n<|endoftext|></s><0x0A>",
          std::string(64, ' ') + "x" + std::string(64, '\n') +
              std::string(64, 'a') + "1234567890",
          std::string("nul \0 and \xff\xfe bad \xe2\x82", 20)};
}
