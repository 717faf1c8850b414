// xcache-expand: writes the MHA model that computes what a GQA model computes,
// to measure the codecs of MHA models on it.
//   xcache-expand IN.gguf OUT.gguf
#include <cstdio>
#include <string>

#include "engine/model/expand_heads.h"
#include "engine/model/model.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr,
                 "usage: xcache-expand IN.gguf OUT.gguf\n"
                 "Repeats the K and V heads of a GQA model, one for each query "
                 "head: an MHA model with the same logits.\n");
    return 2;
  }
  absl::Status status;
  if (const auto model = xcache::Model::Load(argv[1]); model.ok()) {
    status = xcache::WriteExpandedHeads(**model, argv[2]);
    if (status.ok()) {
      const xcache::HyperParams& h = (*model)->hparams();
      std::printf("%s: %d K/V heads for %d of %s\n", argv[2], h.n_heads,
                  h.n_kv_heads, argv[1]);
      return 0;
    }
  } else {
    status = model.status();
  }
  std::fprintf(stderr, "xcache-expand: %s\n",
               std::string(status.message()).c_str());
  return 1;
}
