// Turns a model of grouped-query attention (GQA) into the multi-head (MHA) one
// that computes the same: each K and V head stands once for every query head
// that reads it. Writes the GGUF; does not load, run or quantize anything.
#ifndef XCACHE_ENGINE_MODEL_EXPAND_HEADS_H_
#define XCACHE_ENGINE_MODEL_EXPAND_HEADS_H_

#include <string>

#include "absl/status/status.h"
#include "engine/model/model.h"

namespace xcache {

// Writes `model` to `path` with n_kv_heads = n_heads. Rows of a weight are
// output features and a quantized row is a whole number of blocks, so rows are
// copied as they are: nothing is rounded. All other tensors and all other
// metadata keep every byte; a tensor's place in the file may change.
//
// The new file is read back before it takes its place: a tensor of K/V heads
// that this does not know of would be refused by then. (A K-norm's gain is one
// head's, the same for all, and is kept.) On errors `path` is what it was.
// INVALID_ARGUMENT: the model is an MHA one already. PERMISSION_DENIED or
// RESOURCE_EXHAUSTED: the file cannot be written.
absl::Status WriteExpandedHeads(const Model& model, const std::string& path);

}  // namespace xcache

#endif  // XCACHE_ENGINE_MODEL_EXPAND_HEADS_H_
