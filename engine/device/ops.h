// What the device engine asks of a device: memory, copies, streams, and the
// kernels of a forward pass and of rematerialization. Two implementations: CUDA
// (engine/cuda, a plugin library of its own) and the host's emulation
// (engine/emulation), which runs the same kernel bodies serially for the tests.
//
// The interface crosses a library boundary: plain data only. Everything but
// memory is enqueued on a stream and does not wait; arguments are copied, what
// their pointers name must stay until the work is done. Errors stick: `error`
// gives the first one, and later work may have been dropped. The caller
// validates. One thread at a time, but for memory.
//
// Rows are row-major. BF16 and FP16 are held as uint16_t.
#ifndef XCACHE_ENGINE_DEVICE_OPS_H_
#define XCACHE_ENGINE_DEVICE_OPS_H_

#include <cstddef>
#include <cstdint>

#include "engine/kernels/row_ops.h"

namespace xcache::cuda {

// Changed with every change of this header: plugin and engine must agree.
inline constexpr int kDeviceOpsVersion = 4;

enum class StreamId : int { kCompute, kCopy };
inline constexpr int kNumStreams = 2;
inline constexpr int kNumEvents = 16;

// Rows of a product's tile. Buffers that a Gemm reads or writes have room for
// a multiple of it.
inline constexpr int kGemmRows = 64;

struct DeviceInfo {
  char name[256] = {};
  int ordinal = 0;
  int capability_major = 0;
  int capability_minor = 0;
  size_t total_bytes = 0;
  size_t free_bytes = 0;
  bool has_fused_remat = false;     // whether FusedRemat may be called
  bool has_quantized_gemm = false;  // whether QuantizedGemm may be called
};

enum class HalfType : int { kBf16, kF16 };

// out[num_rows, n] (+)= a[num_rows, k] w[n, k]^T with FP32 sums. A row's result
// depends neither on num_rows nor on the other rows: rows are computed in tiles
// of kGemmRows, whatever their number, by one algorithm for each shape.
struct GemmArgs {
  const uint16_t* a = nullptr;
  const uint16_t* w = nullptr;
  float* out = nullptr;
  int64_t out_stride = 0;  // elements
  int num_rows = 0;
  int n = 0;
  int k = 0;
  HalfType type = HalfType::kBf16;
  bool add = false;
};

// How weights are held in device memory: as BF16, or in the blocks of a GGUF
// type.
enum class WeightType : int {
  kBf16,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ4_K,
  kQ5_K,
  kQ6_K,
};

// A matrix [rows, k] in GGUF blocks, 16-byte aligned: each row's blocks as they
// are in the file, `row_bytes` after those of the row before, a multiple of 16.
// k is a multiple of the type's block. A weight is what dequantizing gives in
// FP32, rounded to BF16: the very value that is uploaded of a BF16 matrix.
struct QuantizedMatrix {
  const uint8_t* blocks = nullptr;
  int64_t row_bytes = 0;
  WeightType type = WeightType::kBf16;  // kBf16: no such matrix
};

// out[num_rows, n] (+)= a[num_rows, k] w[n, k]^T, a in BF16, by tensor cores:
// FP32 sums over k in order, in steps of 16. As with Gemm a row's result
// depends on that row alone. Writes num_rows rows; reads a multiple of 8.
struct QuantizedGemmArgs {
  const uint16_t* a = nullptr;
  QuantizedMatrix w;
  float* out = nullptr;
  int64_t out_stride = 0;  // elements
  int num_rows = 0;
  int n = 0;
  int k = 0;
  bool add = false;
};

// Rows of a quantized matrix as BF16.
struct UnpackArgs {
  QuantizedMatrix w;
  uint16_t* out = nullptr;  // [num_rows, k], 16-byte aligned
  int num_rows = 0;
  int k = 0;
};

// What a step must know of each of its rows.
struct RowInfo {
  int32_t token = 0;
  int32_t position = 0;
  int32_t slot = 0;  // in the live block: position % 64
  // The live block's tiles (KvLayout), and the live rows that its codec wants,
  // of layer 0; each [layers][64][width], or null.
  uint16_t* tiles = nullptr;
  float* unit_x = nullptr;
  float* rms = nullptr;
  float* k_pre = nullptr;
  float* v_pre = nullptr;
};

// The tiles of a block: for each layer and KV head K [head_dim][64], then V
// [64][head_dim], FP16.
struct KvLayout {
  int num_layers = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
};

struct EmbedArgs {
  const RowInfo* rows = nullptr;
  const uint16_t* table = nullptr;  // [vocab, width] BF16
  QuantizedMatrix quantized;        // in place of `table`
  float* out = nullptr;             // [num_rows, width]
  int num_rows = 0;
  int width = 0;
};

// out = x / rms(x) * gain as BF16; keeps x / rms(x) and rms(x) in the live rows
// of `layer` where there are any.
struct RmsNormArgs {
  const float* x = nullptr;            // [.., width]
  const int32_t* row_index = nullptr;  // row r is x's row row_index[r]; null: r
  const RowInfo* rows = nullptr;       // null: no live rows
  const float* gain = nullptr;         // [width]
  uint16_t* out = nullptr;             // [num_rows, width]
  float eps = 0.0f;
  int num_rows = 0;
  int width = 0;
  int layer = 0;
};

// A rematerialized block's place.
struct BlockTarget {
  uint16_t* tiles = nullptr;  // of layer 0
  int64_t layer_stride = 0;   // elements to the next layer's; 0: one layer's
  int32_t first_position = 0;
  int32_t first_row = 0;  // rows before it are left alone
};

// Biases, RoPE and FP16: K and V as they leave W_k, W_v into tiles; also Q, and
// the live rows, where there are any. The one way by which rows get into tiles,
// live and rematerialized.
struct StoreKvArgs {
  // Either the rows of a step, or 64 rows of each of a run of blocks.
  const RowInfo* rows = nullptr;
  const BlockTarget* blocks = nullptr;
  const float* k = nullptr;  // [num_rows, kv_stride]
  const float* v = nullptr;
  int64_t kv_stride = 0;
  const float* q = nullptr;  // [num_rows, q_stride], null: none
  int64_t q_stride = 0;
  float* q_out = nullptr;     // [num_rows, n_heads * head_dim]
  const float* bq = nullptr;  // biases, null: none
  const float* bk = nullptr;
  const float* bv = nullptr;
  const float* cos = nullptr;  // [positions, rope_dim / 2]
  const float* sin = nullptr;
  RopeOrder rope_order = RopeOrder::kInterleaved;
  KvLayout layout;
  int rope_dim = 0;
  int n_heads = 0;
  int layer = 0;
  int num_rows = 0;
};

// Attention of query rows over chunks of 512 keys. A query row is a token and
// one of the query heads of a KV head; a task is up to 64 query rows of one
// item and one chunk. For every KV head, the tasks' partial results; then the
// chunks of each row are merged in order. REQUIRES: head_dim is a multiple
// of 16.
inline constexpr int kAttentionRows = 64;
inline constexpr int kChunkTiles = 8;

// A block of an item: where its tiles are. Layer l's are at tiles + l * stride.
struct BlockTable {
  const uint16_t* tiles = nullptr;
  int64_t layer_stride = 0;  // elements; 0: `tiles` is of the layer at hand
};
struct AttentionTask {
  int64_t first_block = 0;  // the item's first in `blocks`
  int64_t partial_row = 0;  // query rows of the tasks before it
  int32_t row = 0;          // the item's first row in the step
  int32_t num_tokens = 0;   // the item's
  int32_t first_position = 0;
  int32_t first_query = 0;  // number of the task's first query row
  int32_t chunk = 0;
  // Of the task with chunk 0: how many follow for the same rows, itself too.
  int32_t num_chunks = 0;
};
struct AttentionArgs {
  const AttentionTask* tasks = nullptr;
  const BlockTable* blocks = nullptr;
  const float* q = nullptr;  // [rows, n_heads * head_dim]
  // For each task [n_kv_heads, its query rows, head_dim + 2].
  float* partials = nullptr;
  uint16_t* out = nullptr;  // [rows, n_heads * head_dim] BF16
  KvLayout layout;
  int group = 0;  // query heads of a KV head
  int layer = 0;
  int num_tasks = 0;
  float scale = 0.0f;
};

// out = silu(gate) * up as BF16.
struct SiluMulArgs {
  const float* gate_up = nullptr;  // [num_rows, 2 * width]: gate, then up
  uint16_t* out = nullptr;         // [num_rows, width]
  int num_rows = 0;
  int width = 0;
};

// A quantized matrix in payloads (PAGE_FORMAT.md), with scales per token.
struct TokenMatrix {
  int64_t offset = 0;  // in the payload
  int num_channels = 0;
  int group = 0;
  int bits = 0;
  bool fp8 = false;
  bool rotated = false;
};
// One of scales per channel: for each group of tokens and each channel, where
// it is kept.
struct ChannelEntry {
  int32_t tile_offset = 0;  // in the matrix
  int32_t tile_cols = 0;
  int32_t col = 0;  // in the tile
  int32_t bits = 0;
};
struct ChannelMatrix {
  int64_t offset = 0;
  int num_channels = 0;
  int group = 0;                          // tokens, at most 64
  const ChannelEntry* entries = nullptr;  // [ceil(64 / group), num_channels]
  bool fp8 = false;
};

// Rows [64, num_channels] of each block's matrix, FP32 or FP16. A scale that is
// not finite, or a step that is negative, sets invalid[block] to 1.
struct DecodeArgs {
  const uint8_t* const* payloads = nullptr;  // [num_blocks]
  float* out = nullptr;                      // [num_blocks * 64, out_stride]
  uint16_t* out_f16 = nullptr;               // the same; one of the two is null
  int64_t out_stride = 0;
  int32_t* invalid = nullptr;  // [num_blocks]
  int num_blocks = 0;
  bool add = false;  // to what is in `out`
};

// Sums of cross-layer codecs: rows that grow from layer to layer, 64 of each
// block. A row times its byte of the payload / 128, the 64 bytes at `offset`.
struct ScaleSumsArgs {
  const uint8_t* const* payloads = nullptr;  // [num_blocks]
  int64_t offset = 0;
  float* sums = nullptr;  // [num_blocks * 64, width]
  int num_blocks = 0;
  int width = 0;
};
// The sums as FP16. One that is not finite, in a row that counts, sets
// invalid[block] to 1.
struct RoundSumsArgs {
  const float* sums = nullptr;
  const BlockTarget* blocks = nullptr;  // [num_blocks]
  uint16_t* out = nullptr;              // [num_blocks * 64, width]
  int32_t* invalid = nullptr;
  int num_blocks = 0;
  int width = 0;
};

// From payloads, or sums, to tiles in one kernel: FP16 in shared memory, the
// very values that DecodeTokens, DecodeChannels or RoundSums give; their
// product with w by tensor cores, FP32 sums over k in steps of 16; then what
// StoreKv does. A row's result depends on no other row. REQUIRES: head_dim at
// most kFusedHeadDim.
inline constexpr int kFusedHeadDim = 128;
struct FusedRematArgs {
  const uint8_t* const* payloads = nullptr;  // [num_blocks]
  int32_t* invalid = nullptr;                // [num_blocks], as in DecodeArgs
  int num_blocks = 0;
  // What is multiplied: `sums` where there are any, rounded as by RoundSums;
  // `latent` where it has entries, else `x`. k is its number of channels.
  TokenMatrix x;
  ChannelMatrix latent;
  const float* sums = nullptr;  // [num_blocks * 64, sums_width]
  int sums_width = 0;
  // [n, k] FP16, 16-byte aligned. n is 2 kv_dim, K and V; or kv_dim, K, where
  // `v` has channels (kv_dim of them) and is V without a product.
  const uint16_t* w = nullptr;
  TokenMatrix v;
  // Blocks, biases, RoPE, layout, layer; its rows, k, v and q are not used.
  StoreKvArgs store;
};

// kv-fp16: rows [64, kv_dim] of K and V into tiles.
struct StoreFinalArgs {
  const uint8_t* const* payloads = nullptr;
  int64_t offset = 0;  // of the layer in the payload: K, then V
  const BlockTarget* blocks = nullptr;
  KvLayout layout;
  int layer = 0;
  int num_blocks = 0;
};

// Sealing. A full live block: its rows, where its payload goes, and how many of
// its first tokens are sinks.
struct SealSource {
  const float* rows = nullptr;  // layer 0 of what the kernel reads
  uint8_t* payload = nullptr;
  int32_t first_row = 0;
};
// Rows [64, num_channels] to columns [num_channels, 64], rotated where asked. A
// value that is not finite sets invalid[block] to 1, here and below.
struct TransposeArgs {
  const SealSource* sources = nullptr;
  int64_t layer_offset = 0;  // elements, added to the sources' rows
  // [num_blocks, 64, num_channels], in place of the sources' rows.
  const float* x = nullptr;
  float* out = nullptr;  // [num_blocks, num_channels, 64]
  int32_t* invalid = nullptr;
  int num_blocks = 0;
  int num_channels = 0;
  bool rotate = false;
};
// The rows as they are, [64, width] of each block; the sinks' are 0.
struct GatherArgs {
  const SealSource* sources = nullptr;
  int64_t layer_offset = 0;
  float* out = nullptr;  // [num_blocks * 64, width]
  int32_t* invalid = nullptr;
  int num_blocks = 0;
  int width = 0;
};
// out (+)= rows w^T in FP32, one sum over k in order by fused multiply-adds.
struct ExactProductArgs {
  const SealSource* sources = nullptr;
  int64_t layer_offset = 0;
  // [num_blocks, 64, depth], in place of the sources' rows.
  const float* x = nullptr;
  const float* w = nullptr;  // [width, depth]
  // In place of w: FP16, and [depth, width] where it is transposed.
  const uint16_t* w_f16 = nullptr;
  bool transposed = false;
  float* out = nullptr;  // [num_blocks, 64, width]
  int32_t* invalid = nullptr;
  int num_blocks = 0;
  int width = 0;
  int depth = 0;
  bool add = false;
};
// What a cross-layer codec encodes: a layer's unit rows less what the sums
// foretell of them. Chooses each row's scale, writes it to the payload as
// ScaleSums reads it, and scales the sums. kUnit: the sums as they are.
enum class PredictionKind : int { kUnit, kResidual, kFit };
struct PredictArgs {
  const SealSource* sources = nullptr;  // unit rows
  int64_t layer_offset = 0;
  const SealSource* rms = nullptr;  // [layers, 64], of kResidual alone
  int layer = 0;                    // at least 1
  int64_t payload_offset = 0;       // of the scales
  float* sums = nullptr;            // [num_blocks * 64, width]
  float* out = nullptr;             // the same
  int32_t* invalid = nullptr;
  int num_blocks = 0;
  int width = 0;
  PredictionKind kind = PredictionKind::kUnit;
};
// At most 128 neighbouring columns of one tile of a matrix.
struct TileUnit {
  int32_t first_row = 0;  // in the matrix
  int32_t num_rows = 0;
  int32_t first_col = 0;    // the unit's, in the matrix
  int32_t num_cols = 0;     // the unit's
  int32_t col = 0;          // the unit's first column in the tile
  int32_t tile_cols = 0;    // the tile's
  int32_t tile_offset = 0;  // in the encoded matrix
  int32_t bits = 0;
};
// Quantizes and packs matrices. REQUIRES: at most 128 rows a tile.
struct QuantizeArgs {
  const SealSource* sources = nullptr;
  const TileUnit* units = nullptr;
  int64_t payload_offset = 0;  // of the matrix
  const float* x = nullptr;    // [num_blocks][x_block elements]
  int64_t x_block = 0;
  int64_t x_stride = 0;
  float* ranges = nullptr;  // [num_blocks, num_units, 2] to work in, for fp8
  int num_blocks = 0;
  int num_units = 0;
  bool rows_are_tokens = false;  // else columns are
  bool fp8 = false;
  bool search = false;
};

class DeviceOps {
 public:
  virtual ~DeviceOps() = default;

  virtual DeviceInfo info() const = 0;
  // The first error since it was made, or null.
  virtual const char* error() const = 0;

  // Memory, thread-safe. 256-byte aligned; nullptr: there is none left. Freeing
  // waits for all work.
  virtual void* Allocate(size_t bytes) = 0;
  virtual void Free(void* p) = 0;
  // Host memory that copies can run from and to at full speed.
  virtual void* AllocatePinned(size_t bytes) = 0;
  virtual void FreePinned(void* p) = 0;

  virtual void CopyToDevice(StreamId stream, void* to, const void* from,
                            size_t bytes) = 0;
  virtual void CopyToHost(StreamId stream, void* to, const void* from,
                          size_t bytes) = 0;
  virtual void Clear(StreamId stream, void* p, size_t bytes) = 0;

  // Marks the end of what is enqueued on `stream` now.
  virtual void Record(StreamId stream, int event) = 0;
  // What is enqueued on `stream` from now on waits for the event's last mark.
  virtual void Wait(StreamId stream, int event) = 0;
  // The caller waits: for the event's last mark; for all work of a stream.
  virtual void WaitForEvent(int event) = 0;
  virtual void Synchronize(StreamId stream) = 0;

  // Kernels, on StreamId::kCompute.
  virtual void Gemm(const GemmArgs& args) = 0;
  virtual void QuantizedGemm(const QuantizedGemmArgs& args) = 0;
  virtual void Unpack(const UnpackArgs& args) = 0;
  virtual void Embed(const EmbedArgs& args) = 0;
  virtual void RmsNorm(const RmsNormArgs& args) = 0;
  virtual void StoreKv(const StoreKvArgs& args) = 0;
  virtual void Attend(const AttentionArgs& args) = 0;
  virtual void SiluMul(const SiluMulArgs& args) = 0;
  virtual void DecodeTokens(const TokenMatrix& matrix,
                            const DecodeArgs& args) = 0;
  virtual void DecodeChannels(const ChannelMatrix& matrix,
                              const DecodeArgs& args) = 0;
  virtual void ScaleSums(const ScaleSumsArgs& args) = 0;
  virtual void RoundSums(const RoundSumsArgs& args) = 0;
  virtual void FusedRemat(const FusedRematArgs& args) = 0;
  virtual void StoreFinal(const StoreFinalArgs& args) = 0;
  virtual void Transpose(const TransposeArgs& args) = 0;
  virtual void Gather(const GatherArgs& args) = 0;
  virtual void ExactProduct(const ExactProductArgs& args) = 0;
  virtual void Predict(const PredictArgs& args) = 0;
  virtual void Quantize(const QuantizeArgs& args) = 0;
};

// The plugin's one symbol, "xcache_open_cuda": opens device `ordinal`.
// `version` is kDeviceOpsVersion. Null, and a reason in `error`, where that
// fails. The caller deletes what it returns before it closes the library.
using OpenDeviceFn = DeviceOps* (*)(int version, int ordinal, char* error,
                                    size_t error_bytes);
inline constexpr char kOpenDeviceSymbol[] = "xcache_open_cuda";

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_OPS_H_
