// The inference engine: a model's weights on one device, the forward pass over
// many sequences together, and the two directions of the X-cache, seal and
// rematerialize. It knows no store, no session and no RPC.
//
// Words (block, seal, page, sinks, tail, remat): README.md, "Words".
//
// Rule R1, which every engine keeps: a query at position t reads the rows of
// its own 64-token block exactly, the first 4 tokens (sinks) exactly, and every
// other earlier block through the codec. So what a sequence computes depends on
// its token ids and its codec alone, never on how they were chunked, batched,
// cached, forked or resumed. On the CPU this holds bit for bit.
//
// Thread safety: an Engine and all its Sequences belong to one thread at a
// time, except where a method says otherwise. KvBlocks are immutable and may be
// held and released anywhere.
#ifndef XCACHE_ENGINE_ENGINE_H_
#define XCACHE_ENGINE_ENGINE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/sha256.h"
#include "engine/pooling.h"
#include "engine/types.h"

namespace xcache {

// What a caller may know of the loaded model.
struct ModelInfo {
  std::string name;
  std::string architecture;
  std::string device;       // "cpu/avx512", "cuda:0/..."
  std::string numerics_id;  // equal ids compute bit-identical results
  Digest model_fp{};        // weights, hyper-parameters, tokenizer
  int num_layers = 0;
  int d_model = 0;
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int vocab_size = 0;
  int context_length = 0;  // tokens
  int64_t num_parameters = 0;
  int64_t weight_bytes = 0;  // as held in memory
  int kv_fp16_bytes_per_token = 0;
  // Keys that a row sees at most where attention slides; 0: it does nowhere.
  int window = 0;
  Pooling pooling = Pooling::kMean;  // of embeddings, as its file names it
};

// A codec opened on an engine: its profile is loaded. Lives until CloseCodec,
// at most as long as the engine.
class CodecHandle {
 public:
  virtual ~CodecHandle() = default;
  // The canonical spec, every option spelled out: "xquant-gqa:bits=4,...".
  virtual std::string_view spec() const = 0;
  // SHA-256 of model_fp, spec, profile digest and page format version.
  virtual const Digest& cache_fp() const = 0;
  // Size of a page of this codec, everything included: of every one, or about,
  // where they differ (xquant-tc).
  virtual size_t page_bytes() const = 0;
};

// How K and V of sealed blocks come to attention. Both give the same bits.
enum class RematPolicy {
  kResume,  // made once, when a block is sealed or rematerialized, and kept
  kStep,    // codes are kept; each layer's K and V are made in each step
};

inline std::string_view RematPolicyName(RematPolicy policy) {
  return policy == RematPolicy::kStep ? "step" : "resume";
}

// The K/V rows of one full block, all layers, as attention reads them: sinks
// exact, other rows through the codec; or the codes that each step makes them
// from. Maybe without the layers whose attention slides. Device memory.
// Immutable.
class KvBlock {
 public:
  virtual ~KvBlock() = default;
  // What it takes of the engine's memory: kv_block_bytes(), or less where it is
  // kept as codes.
  virtual size_t bytes() const = 0;
  // False: it has only the layers whose attention does not slide.
  virtual bool whole() const { return true; }
};
using KvBlockRef = std::shared_ptr<const KvBlock>;

// The first block that rows from `row` on see where attention slides; 0 where
// it slides nowhere. From this one on a sequence that goes on there needs whole
// blocks.
inline int64_t FirstWholeBlock(const ModelInfo& info, int64_t row) {
  const int64_t first_key = row + 1 - info.window;
  return info.window == 0 || first_key < 0 ? 0 : first_key / kBlockTokens;
}

// `num_rows`, or the most rows before them, at a block's start, that a sequence
// over `blocks` can go on from with the whole blocks that are there.
inline int64_t RowsToGoOnFrom(const ModelInfo& info,
                              std::span<const KvBlockRef> blocks,
                              int64_t num_rows) {
  for (int64_t i = FirstWholeBlock(info, num_rows);
       i < std::min(num_rows / kBlockTokens, std::ssize(blocks)); ++i) {
    if (blocks[static_cast<size_t>(i)]->whole()) continue;
    num_rows = i * kBlockTokens;
    i = FirstWholeBlock(info, num_rows) - 1;
  }
  return num_rows;
}

// What sealing a block yields.
struct SealedBlock {
  int64_t block_index = 0;  // covers tokens [64 i, 64 i + 64)
  std::string page;         // engine/xcache/PAGE_FORMAT.md
  KvBlockRef kv;
};

// One live sequence: its sealed blocks and the rows of its last, partial block.
class Sequence {
 public:
  virtual ~Sequence() = default;
  virtual const CodecHandle& codec() const = 0;
  // Ids of the tokens forwarded so far.
  virtual std::span<const TokenId> tokens() const = 0;
  // The sealed blocks, in order: tokens().size() / 64 of them.
  virtual std::span<const KvBlockRef> blocks() const = 0;
  // Blocks sealed since the last call, in order.
  virtual std::vector<SealedBlock> TakeSealed() = 0;
  // Forgets tokens from `num_tokens` on. A cut inside a sealed block goes back
  // to that block's start, since its exact rows are gone, and further where
  // the rows to come would see blocks that are not whole (RowsToGoOnFrom):
  // returns how many tokens are left, and the caller forwards the rest again.
  // REQUIRES: 0 <= num_tokens <= tokens().size().
  virtual int64_t Truncate(int64_t num_tokens) = 0;
};

enum class LogitsMode {
  kNone,
  kLast,    // for the last token of the item
  kAll,     // for each token of the item
  kHidden,  // for each token what logits are made from, in place of them
};
// How many rows of logits that is, of an item of so many tokens.
inline size_t LogitRows(LogitsMode mode, size_t num_tokens) {
  if (mode == LogitsMode::kAll) return num_tokens;
  return mode == LogitsMode::kLast ? 1 : 0;
}

// One sequence's share of a step.
struct StepItem {
  Sequence* sequence = nullptr;
  // Tokens to append. REQUIRES: at least one, every id in [0, vocab_size), all
  // in one block: tokens.size() <= 64 - sequence->tokens().size() % 64.
  std::span<const TokenId> tokens;
  LogitsMode logits_mode = LogitsMode::kNone;
  // Out: [0 | 1 | tokens.size(), vocab_size] FP32, row-major. Owned by the
  // engine, valid until its next Step.
  std::span<const float> logits;
  // Out, with kHidden: the last layer's rows behind the output norm, as the
  // output matrix takes them. [tokens.size(), d_model] FP32, as `logits`.
  std::span<const float> hidden;
};

// One page to rematerialize.
struct RematJob {
  int64_t block_index = 0;
  std::string_view page;
  // The 64 token ids that the page must hold.
  std::span<const TokenId> tokens;
  // Which form the block is wanted in. kStep is a wish: what the engine or the
  // codec cannot keep as codes becomes K/V.
  RematPolicy remat = RematPolicy::kResume;
  // False: the layers whose attention does not slide are enough. A wish, too.
  bool whole = true;
};

class Engine {
 public:
  virtual ~Engine() = default;

  virtual const ModelInfo& info() const = 0;

  // What takes long in OpenCodec, done beforehand: makes or loads the profile.
  // From any thread, also while the engine works. Errors: OpenCodec's.
  virtual absl::Status PrepareCodec(std::string_view /*spec*/,
                                    const ProgressFn& /*progress*/) {
    return absl::OkStatus();
  }
  // Parses `spec` ("xquant-gqa:bits=4"; see `CodecNames` in
  // engine/xcache/codec.h), makes or loads its profile, and returns the handle;
  // the same handle for equal canonical specs. INVALID_ARGUMENT names what is
  // wrong with the spec and what is known.
  virtual absl::StatusOr<const CodecHandle*> OpenCodec(
      std::string_view spec, const ProgressFn& progress) = 0;

  // The most bytes of host memory that OpenCodec takes for this spec, its
  // profile included: what a caller reserves (rule R5) before. Costs nothing.
  // INVALID_ARGUMENT as OpenCodec.
  virtual absl::StatusOr<size_t> codec_bytes(std::string_view /*spec*/) const {
    return 0;
  }
  // Frees a codec. REQUIRES: no Sequence of it is left.
  virtual void CloseCodec(const CodecHandle& /*codec*/) {}

  // The most bytes of one KvBlock, and those of a Sequence without its sealed
  // blocks. What a caller reserves (rule R5) before it makes one.
  virtual size_t kv_block_bytes() const = 0;
  virtual size_t sequence_bytes(const CodecHandle& codec) const = 0;

  // A sequence that starts with `tokens` (a multiple of 64, may be empty),
  // whose rows are `blocks`, one for each 64 tokens, of either form. `remat`
  // says which form the blocks get that it seals; an engine that knows K/V
  // alone takes no notice.
  // INVALID_ARGUMENT: blocks that the rows to come see where attention slides
  // are not whole (FirstWholeBlock).
  // REQUIRES: `codec` and `blocks` are of this engine; each block was sealed or
  // rematerialized with this codec for this very prefix.
  virtual absl::StatusOr<std::unique_ptr<Sequence>> NewSequence(
      const CodecHandle& codec, std::span<const TokenId> tokens,
      std::span<const KvBlockRef> blocks, RematPolicy remat) = 0;
  absl::StatusOr<std::unique_ptr<Sequence>> NewSequence(
      const CodecHandle& codec, std::span<const TokenId> tokens,
      std::span<const KvBlockRef> blocks) {
    return NewSequence(codec, tokens, blocks, RematPolicy::kResume);
  }

  // Jobs of one Remat call beyond which nothing is gained.
  virtual int64_t max_useful_remat_jobs() const { return 16; }
  // Begins to bring pages to the device, beside the steps that follow: how many
  // of `jobs`, from the first one on; 0 where there is nothing to be gained. A
  // Remat of these very pages, first among its jobs, finds them there. Nothing
  // else comes of it, and the pages may go away meanwhile.
  virtual int64_t StagePages(const CodecHandle& /*codec*/,
                             std::span<const RematJob> /*jobs*/) {
    return 0;
  }
  // Rematerializes pages, in parallel over pages; one result a job, in order.
  // Block 0's sinks are recomputed from its token ids. DATA_LOSS: the page is
  // corrupt, of another codec or model, or holds other tokens.
  virtual std::vector<absl::StatusOr<KvBlockRef>> Remat(
      const CodecHandle& codec, std::span<const RematJob> jobs) = 0;

  // Appends each item's tokens to its sequence and fills in logits. Sequences
  // in `items` are distinct. Blocks that become full are sealed before it
  // returns. INVALID_ARGUMENT leaves every sequence as it was. INTERNAL (a
  // non-finite layer input that cannot be sealed): the sequences of this step
  // are to be dropped.
  virtual absl::Status Step(std::span<StepItem> items) = 0;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_ENGINE_H_
