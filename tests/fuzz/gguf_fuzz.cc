// GGUF bytes to a parsed file, a tokenizer, a chat template and a model: no
// input may crash them, and every tensor of a file that parses lies in it.
#include <utility>

#include "engine/model/chat_template.h"
#include "engine/model/model.h"
#include "engine/model/tokenizer.h"
#include "tests/fuzz/fuzz.h"
#include "tests/support/tiny_model.h"

namespace {

using xcache::GgufFile;
using xcache::GgufType;
using xcache::Model;
using xcache::TensorView;

void TouchRows(const TensorView& tensor) {
  std::vector<float> row(static_cast<size_t>(tensor.cols));
  DequantizeRow(tensor, 0, row.data());
  DequantizeRow(tensor, tensor.rows - 1, row.data());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto gguf = GgufFile::Parse({data, size}, "fuzz");
  if (!gguf.ok()) {
    XCACHE_FUZZ_CHECK(!gguf.status().message().empty());
    return 0;
  }
  for (const xcache::GgufTensor& tensor : (*gguf)->tensors()) {
    XCACHE_FUZZ_CHECK(tensor.bytes.data() >= data &&
                      tensor.bytes.data() + tensor.bytes.size() <= data + size);
    XCACHE_FUZZ_CHECK((*gguf)->FindTensor(tensor.name) == &tensor);
  }
  if (auto tokenizer = xcache::Tokenizer::Create(**gguf); tokenizer.ok()) {
    // The file may leave out bytes, but ids are its own.
    const auto ids =
        (*tokenizer)->EncodeWithSpecial("a tiny <|im_end|> test\n");
    XCACHE_FUZZ_CHECK(ids.ok());
    for (xcache::TokenId id : *ids) {
      XCACHE_FUZZ_CHECK(id >= 0 && id < (*tokenizer)->vocab_size());
    }
    (*tokenizer)->Decode(*ids, true);
    const auto chat = xcache::ChatTemplate::Create(**gguf, **tokenizer, "");
    if (chat.ok()) {
      XCACHE_FUZZ_CHECK(
          (*chat)->RenderMessage({xcache::Role::kUser, "hi"}, 0).ok());
    }
  }
  auto model = Model::FromGguf(*std::move(gguf));
  if (!model.ok()) return 0;
  TouchRows((*model)->token_embd());
  TouchRows((*model)->output());
  for (int i = 0; i < (*model)->hparams().num_layers; ++i) {
    TouchRows((*model)->layer(i).wq);
    TouchRows((*model)->layer(i).w_down);
  }
  return 0;
}

std::vector<std::string> XcacheFuzzSeeds() {
  xcache::testing::TinyModelOptions small;
  small.num_layers = 1;
  small.d_model = 32;
  small.n_heads = 1;
  small.d_ff = 32;
  small.vocab_size = 260;
  std::vector<std::string> seeds = {xcache::testing::TinyModelBytes(small)};
  small.qkv_bias = small.rope_freqs = true;
  small.tied = false;
  small.matrix_type = GgufType::kQ5_1;
  seeds.push_back(xcache::testing::TinyModelBytes(small));

  // Values of every type, without the weight of a model.
  xcache::testing::GgufWriter writer(2);
  writer.SetString("general.architecture", "llama");
  writer.SetUint32("general.alignment", 32);
  for (uint32_t type = 0; type <= 12; ++type) {
    if (type == 8 || type == 9) continue;
    const char digit = static_cast<char>('a' + type);
    writer.SetRaw(std::string("scalar.") + digit, type,
                  std::string(8, '\1').substr(0, type <= 1 || type == 7 ? 1
                                                 : type <= 3            ? 2
                                                 : type <= 6            ? 4
                                                                        : 8));
    std::string array(12 + 8, '\0');
    array[0] = static_cast<char>(type);
    array[4] = static_cast<char>(type <= 1 || type == 7 ? 8
                                 : type <= 3            ? 4
                                 : type <= 6            ? 2
                                                        : 1);
    writer.SetRaw(std::string("array.") + digit, 9, array);
  }
  writer.SetStrings("array.strings", std::vector<std::string>{"a", "", "bc"});
  writer.SetTensor("t0", {4}, GgufType::kF32, std::string(16, '\0'));
  writer.SetTensor("t1", {256, 2}, GgufType::kQ6_K, std::string(420, '\0'));
  writer.SetTensor("t2", {32, 1, 1, 1}, GgufType::kQ8_0, std::string(34, '\0'));
  seeds.push_back(writer.Finish());
  seeds.push_back(
      xcache::testing::SpmVocabularyWriter({"a", "tiny", "t", "i"}).Finish());
  return seeds;
}
