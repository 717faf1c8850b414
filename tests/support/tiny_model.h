// A tiny model in GGUF: real in every part - tensors of any type, a byte-level
// BPE vocabulary with merges, special tokens, a chat template - but random in
// its weights and a few hundred kB in size. Equal options give equal bytes.
#ifndef XCACHE_TESTS_SUPPORT_TINY_MODEL_H_
#define XCACHE_TESTS_SUPPORT_TINY_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "tests/support/gguf_writer.h"

namespace xcache::testing {

struct TinyModelOptions {
  // llama, qwen2 (has the biases), qwen3 or gemma3.
  std::string architecture = "llama";
  int num_layers = 2;
  // Widths are multiples of 32 (of 256 for the K types).
  int d_model = 64;
  int n_heads = 2;
  int n_kv_heads = 1;  // n_heads for MHA
  int head_dim = 32;   // need not be d_model / n_heads
  int d_ff = 128;
  // Special tokens, 256 bytes, merges. At least 259; at most about 700.
  int vocab_size = 384;
  // The first tokens: ids 0, 1 (BOS), 2 (EOS), and so on. At least 3; none
  // stands for <|endoftext|>, <|im_start|>, <|im_end|>.
  std::vector<std::string> special_tokens = {};
  int context_length = 2048;
  int rope_dim = 0;  // 0: head_dim
  int window = 48;   // of gemma3
  int window_pattern = 2;
  GgufType matrix_type = GgufType::kQ4_1;
  GgufType embedding_type = GgufType::kQ8_0;
  bool tied = true;
  bool qkv_bias = false;
  bool rope_freqs = false;  // a rope_freqs.weight as Llama 3.1 has
  uint64_t seed = 1;
};

// The template is ChatML with a default system prompt.
GgufWriter TinyModelWriter(const TinyModelOptions& options);
std::string TinyModelBytes(const TinyModelOptions& options);
// Aborts where the file cannot be written.
void WriteTinyModel(const TinyModelOptions& options, const std::string& path);
// A SentencePiece-style vocabulary and no model: <unk> 0, <s> 1, </s> 2, the
// 256 bytes, then `pieces`, whose scores fall from first to last.
GgufWriter SpmVocabularyWriter(const std::vector<std::string>& pieces);
// Through a temporary file that is gone when this returns.
std::shared_ptr<const Model> MakeTinyModel(const TinyModelOptions& options);

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_SUPPORT_TINY_MODEL_H_
