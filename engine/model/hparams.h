// Reads an architecture's hyper-parameters from a GGUF's metadata. Whatever
// would silently make a wrong model is an error here: a key that is not known
// to leave the computation as it is, or that says something this engine does
// not compute.
#ifndef XCACHE_ENGINE_MODEL_HPARAMS_H_
#define XCACHE_ENGINE_MODEL_HPARAMS_H_

#include <string_view>

#include "absl/status/statusor.h"
#include "engine/model/model.h"

namespace xcache {

// What sets one architecture apart. A new one is a row in hparams.cc, and code
// where it computes something that the others do not.
struct Architecture {
  std::string_view name;  // general.architecture, the prefix of its keys
  RopePairs rope_pairs;
  // Whether q, k and v may have biases. Where they must, all three do.
  bool qkv_bias_allowed;
  bool qkv_bias_required;
  // Whether the heads of q and k are normalised before RoPE.
  bool qk_norm = false;
  // Gemma: a norm after attention and after the feed-forward network, a GELU
  // gate, embeddings times sqrt(d_model), attention that slides.
  bool post_norms = false;
  bool gelu = false;
  bool scales_embedding = false;
  bool slides = false;
};

// UNIMPLEMENTED names the known ones.
absl::StatusOr<const Architecture*> FindArchitecture(const GgufFile& gguf);

// All but vocab_size, which the tensors say.
absl::StatusOr<HyperParams> ReadHyperParams(const GgufFile& gguf,
                                            const Architecture& architecture);

}  // namespace xcache

#endif  // XCACHE_ENGINE_MODEL_HPARAMS_H_
