#include "engine/cpu/attention.h"

#include <algorithm>

namespace xcache {
namespace {

// Multiply-adds of attention below which one thread is faster than two.
constexpr int64_t kMinParallelMacs = 1 << 15;
// Room for partial results of attention; longer ones are not split by chunk.
constexpr int64_t kMaxPartialFloats = int64_t{8} << 20;

}  // namespace

CpuAttention::CpuAttention(const HyperParams& hparams, const Kernels& kernels,
                           ThreadPool& pool, const KvShape& shape,
                           int64_t q_stride, int64_t out_stride)
    : hparams_(hparams),
      kernels_(kernels),
      pool_(pool),
      shape_(shape),
      q_stride_(q_stride),
      out_stride_(out_stride) {
  sliding_.window = hparams.window;
}

void CpuAttention::Plan(std::span<const AttentionItem> items) {
  const int heads = shape_.n_kv_heads;
  k_tiles_.clear();
  v_tiles_.clear();
  num_rows_ = 0;
  for (const AttentionItem& item : items) {
    num_rows_ += item.num_tokens;
    for (int head = 0; head < heads; ++head) {
      for (const KvBlockRef& ref : item.sealed) {
        const auto& block = static_cast<const CpuKvBlock&>(*ref);
        k_tiles_.push_back(block.k_tile(0, head));
        v_tiles_.push_back(block.v_tile(0, head));
      }
      k_tiles_.push_back(item.live->k_tile(0, head));
      v_tiles_.push_back(item.live->v_tile(0, head));
    }
  }
  int max_rows = PlanTasks(items, &full_);
  if (sliding_.window > 0) {
    max_rows = std::max(max_rows, PlanTasks(items, &sliding_));
  }
  const int head_dim = shape_.head_dim;
  const int64_t round = 16;  // threads' scratch on cache lines of their own
  local_floats_ = 2 * max_rows * PartialRowFloats(head_dim);
  scratch_floats_ =
      (local_floats_ + AttentionScratchFloats(head_dim, max_rows) + round - 1) /
      round * round;
  local_floats_ = (local_floats_ + round - 1) / round * round;
  scratch_floats_ += round;
  Grow(scratch_, scratch_floats_ * pool_.num_threads());
}

int CpuAttention::PlanTasks(std::span<const AttentionItem> items, Tasks* out) {
  const int heads = shape_.n_kv_heads;
  const int group = hparams_.n_heads / heads;
  const int head_dim = shape_.head_dim;
  const auto num_items = static_cast<int64_t>(items.size());
  const int64_t wanted = pool_.num_threads() == 1 ? 1 : 3 * pool_.num_threads();

  out->tasks.clear();
  out->groups.clear();
  int64_t macs = 0;
  int64_t partial_floats = 0;
  int max_rows = 0;
  size_t tile = 0;
  for (const AttentionItem& item : items) {
    const int num_tokens = item.num_tokens;

    AttentionArgs args;
    args.head_dim = head_dim;
    args.group = group;
    args.num_tokens = num_tokens;
    args.first_position = item.first_position;
    args.window = out->window;
    args.scale = hparams_.attention_scale;
    args.q_stride = q_stride_;
    args.out_stride = out_stride_;
    const int64_t keys = item.first_position + num_tokens - FirstKey(args, 0);
    macs += 2 * keys * num_tokens * hparams_.n_heads * head_dim;
    const int num_chunks = NumChunks(args) - FirstChunk(args);
    // Chunks are split off where heads alone do not keep the threads busy, and
    // for few tokens always: they cost little there and balance long and
    // short sequences.
    const bool chunked =
        num_chunks > 1 && wanted > 1 &&
        (num_tokens <= 8 || num_items * heads < wanted) &&
        num_chunks * heads * PartialFloats(args) <= kMaxPartialFloats;
    const int64_t so_far = num_items * heads * (chunked ? num_chunks : 1);
    // Fewer tokens a task means converting each tile's FP16 once more.
    const int splits = static_cast<int>(std::clamp<int64_t>(
        (wanted + so_far - 1) / so_far, 1, std::max(1, num_tokens / 8)));
    for (int head = 0; head < heads; ++head) {
      args.k_tiles = k_tiles_.data() + tile;
      args.v_tiles = v_tiles_.data() + tile;
      tile += item.sealed.size() + 1;
      for (int s = 0; s < splits; ++s) {
        const int first = num_tokens * s / splits;
        const int last = num_tokens * (s + 1) / splits;
        AttentionArgs part = args;
        part.num_tokens = last - first;
        part.first_position += first;
        part.q = item.q + first * q_stride_ + head * group * head_dim;
        part.out = item.out + first * out_stride_ + head * group * head_dim;
        max_rows = std::max(max_rows, part.num_tokens * group);
        out->groups.push_back({part, partial_floats, chunked});
        if (!chunked) {
          out->tasks.push_back({out->groups.size() - 1, -1, 0});
          continue;
        }
        for (int chunk = FirstChunk(part); chunk < NumChunks(part); ++chunk) {
          out->tasks.push_back({out->groups.size() - 1, chunk, partial_floats});
          partial_floats += PartialFloats(part);
        }
      }
    }
  }
  out->parallel = macs >= kMinParallelMacs;
  Grow(partials_, partial_floats);
  return max_rows;
}

void CpuAttention::Run(int layer) {
  const Tasks& of_layer = hparams_.slides(layer) ? sliding_ : full_;
  const auto run = [&](int64_t t, int thread) {
    const Task& task = of_layer.tasks[static_cast<size_t>(t)];
    const AttentionArgs& args = of_layer.groups[task.group].args;
    float* local = scratch_.data() + thread * scratch_floats_;
    float* scratch = local + local_floats_;
    if (task.chunk < 0) {
      Attend(kernels_, args, local, scratch);
    } else {
      kernels_.attention_chunk(args, task.chunk,
                               partials_.data() + task.partial, scratch);
    }
  };
  const auto merge = [&](size_t g) {
    const Group& group = of_layer.groups[g];
    if (!group.chunked) return;
    float* first = partials_.data() + group.first_partial;
    const int64_t stride = PartialFloats(group.args);
    const int num_chunks = NumChunks(group.args) - FirstChunk(group.args);
    for (int chunk = 1; chunk < num_chunks; ++chunk) {
      kernels_.attention_merge(group.args, first, first + chunk * stride);
    }
    kernels_.attention_finish(group.args, first);
  };
  const auto num_tasks = static_cast<int64_t>(of_layer.tasks.size());
  const auto num_groups = static_cast<int64_t>(of_layer.groups.size());
  if (of_layer.parallel) {
    pool_.ParallelFor(num_tasks, run);
  } else {
    for (int64_t t = 0; t < num_tasks; ++t) run(t, 0);
  }
  if (num_rows_ < kMinParallelRows) {
    for (size_t g = 0; g < of_layer.groups.size(); ++g) merge(g);
  } else if (std::any_of(of_layer.groups.begin(), of_layer.groups.end(),
                         [](const Group& g) { return g.chunked; })) {
    pool_.ParallelFor(num_groups,
                      [&](int64_t g, int) { merge(static_cast<size_t>(g)); });
  }
  // The next layer's tiles lie at the same distance in every block, also where
  // they would be in one that has them not, which nobody reads.
  if (layer + 1 == hparams_.num_layers) return;
  const ptrdiff_t distance = (shape_.slot(layer + 1) - shape_.slot(layer)) *
                             static_cast<ptrdiff_t>(shape_.layer_elements());
  for (const uint16_t*& tile : k_tiles_) tile += distance;
  for (const uint16_t*& tile : v_tiles_) tile += distance;
}

}  // namespace xcache
