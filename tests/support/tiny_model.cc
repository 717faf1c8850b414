#include "tests/support/tiny_model.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <utility>
#include <vector>

#include "engine/base/sha256.h"

namespace xcache::testing {
namespace {

// What the merges are learnt from.
constexpr std::string_view kCorpus =
    "The keeper of the old lighthouse wrote a letter every evening, and every "
    "morning she read what the sea had answered. There were ships in it, and "
    "weather, and the names of people whom she had never met. She answered "
    "them all. When the harbour asked for the number of vessels that had "
    "passed, she counted them in her letters: seventeen in the spring, "
    "thirty-one in the summer, none in the winter when the ice was thick. "
    "What is the use of counting, asked the boy who brought the bread. It is "
    "how the light remembers, she said, and wound the clock again. You can "
    "keep a thing by holding it, or you can keep it by knowing how to make it "
    "once more from something smaller. The boy thought about that on the way "
    "down. In the evening he carried a stone home for each ship, and on the "
    "next day another, until the window sill was full; then he wrote the "
    "numbers on a page and put the stones back on the beach. This is a short "
    "story for a small model. It has words that come again and words that do "
    "not, user and assistant, system and message, question and answer, "
    "because those are the words of a conversation.";

// The character that stands for a byte in byte-level BPE vocabularies (GPT-2's
// bytes_to_unicode): printable Latin-1 stands for itself, the others follow
// from U+0100 on.
std::string ByteCharacter(int byte) {
  const auto printable = [](int b) {
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xff && b != 0xad);
  };
  int code = byte;
  if (!printable(byte)) {
    code = 0x100;
    for (int b = 0; b < byte; ++b) code += printable(b) ? 0 : 1;
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xc0 | (code >> 6)),
          static_cast<char>(0x80 | (code & 0x3f))};
}

struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  std::vector<std::string> merges;
};

Vocabulary MakeVocabulary(const TinyModelOptions& o) {
  constexpr int32_t kNormal = 1, kControl = 3, kUnused = 5;
  Vocabulary v;
  static const std::vector<std::string> kChatMl = {
      "<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  for (const std::string& special :
       o.special_tokens.empty() ? kChatMl : o.special_tokens) {
    v.tokens.push_back(special);
    v.types.push_back(kControl);
  }
  for (int b = 0; b < 256; ++b) {
    v.tokens.push_back(ByteCharacter(b));
    v.types.push_back(kNormal);
  }
  // Words with the space before them.
  std::vector<std::vector<std::string>> words;
  for (char c : kCorpus) {
    if (c == ' ' || words.empty()) words.emplace_back();
    words.back().push_back(ByteCharacter(static_cast<uint8_t>(c)));
  }
  const auto size = static_cast<size_t>(o.vocab_size);
  while (v.tokens.size() < size) {
    std::map<std::pair<std::string, std::string>, int> counts;
    for (const auto& word : words) {
      for (size_t i = 1; i < word.size(); ++i) ++counts[{word[i - 1], word[i]}];
    }
    if (counts.empty()) {
      v.tokens.push_back("<unused" + std::to_string(v.tokens.size()) + ">");
      v.types.push_back(kUnused);
      continue;
    }
    auto best = counts.begin();
    for (auto it = counts.begin(); it != counts.end(); ++it) {
      if (it->second > best->second) best = it;
    }
    const auto [left, right] = best->first;
    v.merges.push_back(left + " " + right);
    v.tokens.push_back(left + right);
    v.types.push_back(kNormal);
    for (auto& word : words) {
      for (size_t i = 1; i < word.size(); ++i) {
        if (word[i - 1] == left && word[i] == right) {
          word[i - 1] += right;
          word.erase(word.begin() + static_cast<ptrdiff_t>(i));
        }
      }
    }
  }
  return v;
}

// Numbers near N(0, 1): a sum of 12 uniforms of a SplitMix64, the same on every
// platform.
class Random {
 public:
  Random(uint64_t seed, std::string_view name) {
    const Digest digest = Sha256Of(name);
    state_ = seed;
    for (size_t i = 0; i < 8; ++i) {
      state_ ^= static_cast<uint64_t>(digest[i]) << (8 * i);
    }
  }
  float Normal() {
    uint64_t sum = 0;
    for (int i = 0; i < 3; ++i) {
      const uint64_t bits = Next();
      for (int j = 0; j < 4; ++j) sum += (bits >> (16 * j)) & 0xffff;
    }
    return static_cast<float>(sum) / 65536.0f - 6.0f;
  }

 private:
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t state_;
};

class TensorMaker {
 public:
  TensorMaker(uint64_t seed, GgufWriter* writer)
      : seed_(seed), writer_(writer) {}

  void Matrix(const std::string& name, int rows, int cols, GgufType type,
              float stddev) {
    Add(name, {cols, rows}, type, 0.0f, stddev);
  }
  void Vector(const std::string& name, int size, float mean, float stddev) {
    Add(name, {size}, GgufType::kF32, mean, stddev);
  }

 private:
  void Add(const std::string& name, std::vector<int64_t> dims, GgufType type,
           float mean, float stddev) {
    size_t count = 1;
    for (int64_t dim : dims) count *= static_cast<size_t>(dim);
    Random random(seed_, name);
    std::vector<float> values(count);
    for (float& value : values) value = mean + stddev * random.Normal();
    writer_->SetTensor(name, std::move(dims), type, Quantize(type, values));
  }

  uint64_t seed_;
  GgufWriter* writer_;
};

constexpr std::string_view kChatTemplate =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != "
    "'system' %}{{ '<|im_start|>system\nYou are a tiny model.<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if "
    "add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

void SetMetadata(const TinyModelOptions& o, GgufWriter* w) {
  const auto u32 = [w](const std::string& key, int value) {
    w->SetUint32(key, static_cast<uint32_t>(value));
  };
  const std::string prefix = o.architecture + ".";
  w->SetString("general.architecture", o.architecture);
  w->SetString("general.name", "tiny");
  u32(prefix + "block_count", o.num_layers);
  u32(prefix + "context_length", o.context_length);
  u32(prefix + "embedding_length", o.d_model);
  u32(prefix + "feed_forward_length", o.d_ff);
  u32(prefix + "attention.head_count", o.n_heads);
  u32(prefix + "attention.head_count_kv", o.n_kv_heads);
  u32(prefix + "attention.key_length", o.head_dim);
  u32(prefix + "attention.value_length", o.head_dim);
  u32(prefix + "rope.dimension_count",
      o.rope_dim > 0 ? o.rope_dim : o.head_dim);
  u32(prefix + "vocab_size", o.vocab_size);
  w->SetFloat(prefix + "attention.layer_norm_rms_epsilon", 1e-5f);
  w->SetFloat(prefix + "rope.freq_base", 10000.0f);

  if (o.architecture == "gemma3") {
    u32(prefix + "attention.sliding_window", o.window);
    u32(prefix + "attention.sliding_window_pattern", o.window_pattern);
  }

  const Vocabulary vocabulary = MakeVocabulary(o);
  w->SetString("tokenizer.ggml.model", "gpt2");
  w->SetString("tokenizer.ggml.pre", "smollm");
  w->SetStrings("tokenizer.ggml.tokens", vocabulary.tokens);
  w->SetInts("tokenizer.ggml.token_type", vocabulary.types);
  w->SetStrings("tokenizer.ggml.merges", vocabulary.merges);
  u32("tokenizer.ggml.bos_token_id", 1);
  u32("tokenizer.ggml.eos_token_id", 2);
  w->SetBool("tokenizer.ggml.add_bos_token", false);
  w->SetString("tokenizer.chat_template", kChatTemplate);
}

}  // namespace

GgufWriter TinyModelWriter(const TinyModelOptions& o) {
  GgufWriter w;
  SetMetadata(o, &w);
  TensorMaker make(o.seed, &w);
  // A matrix of variance gain^2 / cols takes a unit row to one of rms `gain`.
  const auto scale = [](int cols, float gain) {
    return gain / std::sqrt(static_cast<float>(cols));
  };
  const GgufType type = o.matrix_type;
  const int q = o.n_heads * o.head_dim, k = o.n_kv_heads * o.head_dim;
  // Gemma's are scaled by sqrt(d_model) when they are read.
  const float embedding_gain =
      o.architecture == "gemma3" ? scale(o.d_model, 3.0f) : 3.0f;
  make.Matrix("token_embd.weight", o.vocab_size, o.d_model, o.embedding_type,
              scale(o.d_model, embedding_gain));
  make.Vector("output_norm.weight", o.d_model, 1.0f, 0.1f);
  if (!o.tied) {
    make.Matrix("output.weight", o.vocab_size, o.d_model, o.embedding_type,
                scale(o.d_model, 3.0f));
  }
  if (o.rope_freqs) {
    // From 1 (fast pairs) to 8 (slow pairs), as Llama 3.1's are.
    const int pairs = (o.rope_dim > 0 ? o.rope_dim : o.head_dim) / 2;
    std::vector<float> factors;
    for (int i = 0; i < pairs; ++i) {
      factors.push_back(1.0f + 7.0f * static_cast<float>(i) /
                                   static_cast<float>(pairs));
    }
    w.SetTensor("rope_freqs.weight", {pairs}, GgufType::kF32,
                Quantize(GgufType::kF32, factors));
  }
  for (int i = 0; i < o.num_layers; ++i) {
    const std::string prefix = "blk." + std::to_string(i) + ".";
    make.Vector(prefix + "attn_norm.weight", o.d_model, 1.0f, 0.1f);
    // Queries and keys with some contrast, so that attention is not flat.
    make.Matrix(prefix + "attn_q.weight", q, o.d_model, type,
                scale(o.d_model, 1.5f));
    make.Matrix(prefix + "attn_k.weight", k, o.d_model, type,
                scale(o.d_model, 1.5f));
    make.Matrix(prefix + "attn_v.weight", k, o.d_model, type,
                scale(o.d_model, 1.0f));
    make.Matrix(prefix + "attn_output.weight", o.d_model, q, type,
                scale(q, 0.7f));
    if (o.qkv_bias || o.architecture == "qwen2") {
      make.Vector(prefix + "attn_q.bias", q, 0.0f, 0.3f);
      make.Vector(prefix + "attn_k.bias", k, 0.0f, 0.3f);
      make.Vector(prefix + "attn_v.bias", k, 0.0f, 0.3f);
    }
    const bool gemma = o.architecture == "gemma3";
    if (gemma || o.architecture == "qwen3") {
      make.Vector(prefix + "attn_q_norm.weight", o.head_dim, 1.2f, 0.2f);
      make.Vector(prefix + "attn_k_norm.weight", o.head_dim, 1.2f, 0.2f);
    }
    if (gemma) {
      make.Vector(prefix + "post_attention_norm.weight", o.d_model, 1.0f, 0.1f);
      make.Vector(prefix + "post_ffw_norm.weight", o.d_model, 1.0f, 0.1f);
    }
    make.Vector(prefix + "ffn_norm.weight", o.d_model, 1.0f, 0.1f);
    make.Matrix(prefix + "ffn_gate.weight", o.d_ff, o.d_model, type,
                scale(o.d_model, 1.0f));
    make.Matrix(prefix + "ffn_up.weight", o.d_ff, o.d_model, type,
                scale(o.d_model, 1.0f));
    make.Matrix(prefix + "ffn_down.weight", o.d_model, o.d_ff, type,
                scale(o.d_ff, 1.0f));
  }
  return w;
}

GgufWriter SpmVocabularyWriter(const std::vector<std::string>& pieces) {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> types = {2, 3, 3};
  std::vector<float> scores = {0.0f, 0.0f, 0.0f};
  for (int b = 0; b < 256; ++b) {
    char spelling[8];
    std::snprintf(spelling, sizeof(spelling), "<0x%02X>", b);
    tokens.emplace_back(spelling);
    types.push_back(6);
    scores.push_back(0.0f);
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    tokens.push_back(pieces[i]);
    types.push_back(1);
    scores.push_back(-static_cast<float>(i));
  }
  GgufWriter w;
  w.SetString("tokenizer.ggml.model", "llama");
  w.SetStrings("tokenizer.ggml.tokens", tokens);
  w.SetInts("tokenizer.ggml.token_type", types);
  w.SetFloats("tokenizer.ggml.scores", scores);
  return w;
}

std::string TinyModelBytes(const TinyModelOptions& options) {
  return TinyModelWriter(options).Finish();
}

void WriteTinyModel(const TinyModelOptions& options, const std::string& path) {
  const std::string bytes = TinyModelBytes(options);
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (!out) {
    std::fprintf(stderr, "cannot write %s\n", path.c_str());
    std::abort();
  }
}

std::shared_ptr<const Model> MakeTinyModel(const TinyModelOptions& options) {
  const char* dir = std::getenv("TMPDIR");
  std::string path =
      std::string(dir != nullptr ? dir : "/tmp") + "/xcache-tiny-model-XXXXXX";
  const int fd = ::mkstemp(path.data());
  if (fd < 0) {
    std::perror(path.c_str());
    std::abort();
  }
  ::close(fd);
  WriteTinyModel(options, path);
  auto model = Model::Load(path);
  ::unlink(path.c_str());
  if (!model.ok()) {
    std::fprintf(stderr, "%s\n", model.status().ToString().c_str());
    std::abort();
  }
  return *std::move(model);
}

}  // namespace xcache::testing
