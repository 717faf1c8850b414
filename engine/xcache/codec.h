// A codec turns the rows of a full block into the payload of its page, and the
// payload back into K and V. Each codec is one file pair plus a line in the
// registry (codec_registry.cc). Codecs run on the CPU and share no state.
//
// Shapes: d = d_model, k = n_kv_heads * head_dim, rows are the 64 tokens of a
// block. In block 0 the first 4 rows are sinks: Seal does not read them and
// Remat does not write them.
#ifndef XCACHE_ENGINE_XCACHE_CODEC_H_
#define XCACHE_ENGINE_XCACHE_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kernels/isa.h"
#include "engine/model/model.h"
#include "engine/types.h"
#include "engine/xcache/payload_plan.h"
#include "engine/xcache/profile.h"

namespace xcache {

// A parsed spec string: "name" or "name:option=value,option=value".
struct CodecSpec {
  std::string name;
  std::vector<std::pair<std::string, std::string>> options;  // sorted by key

  // INVALID_ARGUMENT on bad syntax or a repeated option.
  static absl::StatusOr<CodecSpec> Parse(std::string_view text);
  std::string ToString() const;
};

// Which rows Seal needs of each layer; an engine keeps these, and only these,
// for the live block. A bit set.
enum LiveRows : unsigned {
  kLiveUnitX = 1,    // u = x / rms(x), [64, d]: the norm's gain is NOT applied
  kLiveRms = 2,      // rms(x), eps inside, [64]
  kLiveKvPre = 4,    // K and V as they leave W_k, W_v: before biases, K-norm
                     // and RoPE, [64, k] each
  kLiveKvFinal = 8,  // K after RoPE and V, as FP16 bits, [64, k] each
};

// The rows of one layer; pointers are null where live_rows() does not ask.
struct LayerRows {
  const float* unit_x = nullptr;      // [64, d]
  const float* rms = nullptr;         // [64]
  const float* k_pre = nullptr;       // [64, k]
  const float* v_pre = nullptr;       // [64, k]
  const uint16_t* k_final = nullptr;  // [64, k] fp16, head-major rows
  const uint16_t* v_final = nullptr;  // [64, k] fp16
};

// How far the K and V that Remat yields have come.
enum class RematStage {
  kPre,    // before biases, K-norm and RoPE, FP32
  kFinal,  // ready for attention, FP16
};

// One layer of a rematerialized block. Rows [first_row, 64) are valid. The sink
// may change what it is given: it is not read again.
struct RematRows {
  float* k_pre = nullptr;             // [64, k], stage kPre
  float* v_pre = nullptr;             // [64, k]
  const uint16_t* k_final = nullptr;  // [64, k], stage kFinal
  const uint16_t* v_final = nullptr;
};
using RematSink = std::function<void(int layer, const RematRows& rows)>;

// Calls fn(task) for each task in [0, num_tasks), several at a time where it
// can, and returns when all are done.
using ParallelForFn = std::function<void(
    int64_t num_tasks, const std::function<void(int64_t task)>& fn)>;

// What a codec is told of the block at hand.
struct BlockInfo {
  // The row alone, where the codec does not ask for more.
  BlockInfo(int first) : first_row(first) {}  // NOLINT: a block's first row
  BlockInfo(int first, std::span<const TokenId> ids)
      : first_row(first), tokens(ids) {}

  int first_row = 0;  // 4 for block 0, whose first rows are sinks, else 0
  // The block's 64 ids; may be empty unless the codec's wants_tokens() is set.
  std::span<const TokenId> tokens;
};

// Layers [begin, end); of these, one of so many, the last, where not every one
// is wanted (HyperParams::window_pattern).
struct LayerRange {
  int begin = 0;
  int end = 0;
  int every = 1;

  bool has(int layer) const {
    return begin <= layer && layer < end && (layer + 1) % every == 0;
  }
};

class Codec {
 public:
  virtual ~Codec() = default;

  // Canonical: every option spelled out, sorted.
  const CodecSpec& spec() const { return spec_; }
  // What a payload holds, the same for every page.
  const PayloadPlan& plan() const { return plan_; }
  size_t payload_at(int layer) const { return plan_.at(layer); }
  // The size of every payload, or the most, where they differ in size.
  size_t payload_bytes() const { return plan_.bytes(); }
  bool variable_size() const { return plan_.variable_size(); }
  // Of the way in: one more whenever equal rows become other bytes, so that a
  // page of before is not taken for one of now. Part of cache_fp.
  virtual int encoder_version() const { return 1; }
  // What Seal has used of the payload_bytes() that it was given.
  virtual size_t used_bytes(std::span<const uint8_t> payload) const {
    return payload.size();
  }
  // About what a payload takes; exact unless variable_size().
  virtual size_t expected_payload_bytes() const { return plan_.bytes(); }
  // Whether the codec reads a block's token ids.
  virtual bool wants_tokens() const { return false; }
  int num_layers() const { return plan_.num_layers(); }
  virtual unsigned live_rows() const = 0;
  virtual RematStage remat_stage() const { return RematStage::kPre; }

  // Encodes a block. `rows(layer)` is called once for each layer, in order.
  // `payload` has payload_bytes(). INVALID_ARGUMENT, naming layer and row: a
  // value is not finite; nothing is to be kept then. Thread-safe.
  // Deterministic: equal rows, equal bytes, whatever the instruction set.
  absl::Status Seal(const std::function<LayerRows(int layer)>& rows,
                    BlockInfo block, std::span<uint8_t> payload) const {
    return SealLayers({0, num_layers()}, rows, block, payload);
  }

  // Decodes a payload, what used_bytes() says of it, layer by layer in order,
  // into `sink`, whose argument is valid during the call only.
  // INVALID_ARGUMENT: wrong size or a scale that is not finite. Thread-safe.
  // The same bits for the same payload, always.
  absl::Status Remat(std::span<const uint8_t> payload, BlockInfo block,
                     const RematSink& sink) const {
    return RematLayers({0, num_layers()}, payload, block, sink);
  }

  // Seal, and Remat of the payload it wrote, in one pass where that saves work:
  // `sink` is handed the very bits that Remat would hand it. `parallel`, where
  // it is not null, spreads the work on this one block.
  virtual absl::Status SealRemat(
      const std::function<LayerRows(int layer)>& rows, BlockInfo block,
      std::span<uint8_t> payload, const RematSink& sink,
      const ParallelForFn& parallel) const;

  // Whether each layer's part of a payload stands for itself. Then the two
  // methods below take any range of layers, in any order and from several
  // threads at once for one payload; else only all layers.
  virtual bool layers_independent() const = 0;
  // The layers in at most `wanted` ranges; in one where they depend on each
  // other.
  std::vector<LayerRange> SplitLayers(int64_t wanted) const;
  // Seal and Remat of the range's layers, of the whole payload. Sealed are all
  // from begin to end.
  virtual absl::Status SealLayers(
      LayerRange range, const std::function<LayerRows(int layer)>& rows,
      BlockInfo block, std::span<uint8_t> payload) const = 0;
  virtual absl::Status RematLayers(LayerRange range,
                                   std::span<const uint8_t> payload,
                                   BlockInfo block,
                                   const RematSink& sink) const = 0;

 protected:
  Codec(CodecSpec spec, PayloadPlan plan)
      : spec_(std::move(spec)), plan_(std::move(plan)) {}

 private:
  const CodecSpec spec_;
  const PayloadPlan plan_;
};

// Names of all codecs, for messages and help.
std::vector<std::string> CodecNames();
// Of those that every model can have: whose profile, if any, is computed from
// weights alone. All but xquant-tc, which needs one from calibration text.
std::vector<std::string> CodecNamesWithoutCalibration();

// The profile that `spec` needs on `model`; kind kNone if none.
absl::StatusOr<ProfileKind> ProfileOf(const CodecSpec& spec);

// The most bytes that a codec of this spec takes on `model`, its profile
// included, known before it is made; with its file in `profile_dir`, if there
// is one, closer than without. INVALID_ARGUMENT: bad syntax, or no such codec.
absl::StatusOr<size_t> MaxCodecBytes(std::string_view spec, const Model& model,
                                     const std::string& profile_dir);

// Yields the row of a token that layer 0 starts with, [d].
using EmbeddingFn = std::function<void(TokenId token, float* out)>;

// Makes the codec. `profile` is null where ProfileOf says kNone; it must
// outlive the codec, and so must what `embedding` refers to; null: the rows are
// read from the model. INVALID_ARGUMENT: unknown codec or option, with what is
// known, or a value out of range.
absl::StatusOr<std::unique_ptr<const Codec>> MakeCodec(
    const CodecSpec& spec, const Model& model, const Profile* profile, Isa isa,
    const EmbeddingFn& embedding = nullptr);

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_CODEC_H_
