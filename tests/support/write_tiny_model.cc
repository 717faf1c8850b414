// Writes a tiny model for tests that are not C++:
//   xcache-tiny-model OUT.gguf [layers=N] [d_model=N] [n_heads=N]
//     [n_kv_heads=N] [head_dim=N] [d_ff=N] [vocab=N] [context=N] [seed=N]
//     [window=N] [pattern=N] [special=SPELLING,SPELLING,SPELLING...]
//     [arch=llama|qwen2|qwen3|gemma3] [type=TYPE] [embedding=TYPE] [tied=0]
// A TYPE is the number that GGUF files have for it.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>

#include "tests/support/tiny_model.h"

int main(int argc, char** argv) {
  xcache::testing::TinyModelOptions options;
  const std::map<std::string, int*> names = {
      {"layers", &options.num_layers}, {"d_model", &options.d_model},
      {"n_heads", &options.n_heads},   {"n_kv_heads", &options.n_kv_heads},
      {"head_dim", &options.head_dim}, {"d_ff", &options.d_ff},
      {"vocab", &options.vocab_size},  {"context", &options.context_length},
      {"window", &options.window},     {"pattern", &options.window_pattern}};
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s OUT.gguf [name=value]...\n", argv[0]);
    return 2;
  }
  for (int i = 2; i < argc; ++i) {
    const std::string arg = argv[i];
    const size_t equals = arg.find('=');
    const std::string name = arg.substr(0, equals);
    const long value =
        equals == arg.npos ? -1 : std::atol(arg.c_str() + equals + 1);
    if (name == "special" && equals != arg.npos) {
      std::istringstream list(arg.substr(equals + 1));
      options.special_tokens.clear();
      for (std::string s; std::getline(list, s, ',');) {
        options.special_tokens.push_back(s);
      }
    } else if (name == "arch" && equals != arg.npos) {
      options.architecture = arg.substr(equals + 1);
    } else if (name == "type" && value >= 0) {
      options.matrix_type = static_cast<xcache::GgufType>(value);
    } else if (name == "embedding" && value >= 0) {
      options.embedding_type = static_cast<xcache::GgufType>(value);
    } else if (name == "tied" && value >= 0) {
      options.tied = value != 0;
    } else if (name == "seed" && value >= 0) {
      options.seed = static_cast<uint64_t>(value);
    } else if (names.contains(name) && value > 0) {
      *names.at(name) = static_cast<int>(value);
    } else {
      std::fprintf(stderr, "%s: not an option\n", argv[i]);
      return 2;
    }
  }
  xcache::testing::WriteTinyModel(options, argv[1]);
  return 0;
}
