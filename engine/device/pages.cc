#include "engine/device/pages.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/types.h"

namespace xcache::cuda {
namespace {

// Payloads are copied in parts, some layers of every page of a run, so that
// the first layers are decoded while the others are on their way.
constexpr int kParts = 4;

// Events: each part of the two runs in flight was copied, each run decoded.
constexpr int Copied(size_t half, int part) {
  return static_cast<int>(half) * kParts + part;
}
constexpr int Decoded(size_t half) {
  return 2 * kParts + static_cast<int>(half);
}
static_assert(Decoded(1) < kNumEvents);

LayerRange PartOf(int num_layers, int part) {
  return {num_layers * part / kParts, num_layers * (part + 1) / kParts};
}

// Blocks whose rows are downloaded and encoded together.
constexpr size_t kSealBlocks = 8;

int FirstRow(int64_t block_index) { return block_index == 0 ? kSinkTokens : 0; }

size_t RoundUp(size_t n) { return (n + 255) / 256 * 256; }

absl::Status InvalidScales(int64_t block_index) {
  return absl::DataLossError(absl::StrCat(
      "page of block ", block_index,
      ": payload: expected finite scales and steps of at least 0"));
}

// K and V of a layer as rows of FP16, [64, kv_dim], out of its tiles.
void GatherRows(const KvShape& shape, const uint16_t* tiles, uint16_t* k,
                uint16_t* v) {
  const auto head_dim = static_cast<size_t>(shape.head_dim);
  const auto kv_dim = static_cast<size_t>(shape.kv_dim());
  for (int head = 0; head < shape.n_kv_heads; ++head) {
    const uint16_t* k_tile =
        tiles + 2 * shape.tile_elements() * static_cast<size_t>(head);
    const uint16_t* v_tile = k_tile + shape.tile_elements();
    const size_t column = static_cast<size_t>(head) * head_dim;
    for (size_t row = 0; row < kBlockTokens; ++row) {
      std::copy_n(v_tile + row * head_dim, head_dim, v + row * kv_dim + column);
      for (size_t i = 0; i < head_dim; ++i) {
        k[row * kv_dim + column + i] = k_tile[i * kBlockTokens + row];
      }
    }
  }
}

}  // namespace

DevicePages::DevicePages(DeviceOps& ops, DeviceRemat& remat, ThreadPool& pool,
                         const KvShape& shape)
    : ops_(ops),
      remat_(remat),
      pool_(pool),
      shape_(shape),
      tables_(ops),
      staging_(ops),
      payloads_(ops),
      sealed_staging_(ops),
      sealed_payloads_(ops),
      scratch_tiles_(ops),
      host_invalid_(ops),
      host_rows_(ops),
      seal_rows_(ops),
      seal_ranges_(ops) {}

absl::Status DevicePages::Remat(const DeviceCodecHandle& codec,
                                std::span<PageJob> jobs, bool keep_staged) {
  if (jobs.empty()) return absl::OkStatus();
  int64_t positions = 0;
  for (const PageJob& job : jobs) {
    positions = std::max(positions, (job.block_index + 1) * kBlockTokens);
  }
  XC_RETURN_IF_ERROR(remat_.ExtendRope(positions));
  XC_RETURN_IF_ERROR(remat_.Reserve(codec.device_codec()));
  return codec.device_codec() != nullptr
             ? RematOnDevice(codec, jobs, keep_staged)
             : RematThroughHost(codec, jobs);
}

absl::Status DevicePages::ReservePayloads(const DeviceCodecHandle& codec,
                                          size_t blocks) {
  const size_t page = RoundUp(codec.codec().payload_bytes());
  if (staged_codec_ != &codec) DropStaged();
  if (blocks <= run_blocks_ && 2 * run_blocks_ * page <= staging_.bytes() &&
      2 * run_blocks_ * page <= payloads_.bytes()) {
    return absl::OkStatus();
  }
  DropStaged();
  run_blocks_ = 0;
  XC_RETURN_IF_ERROR(staging_.Reserve(2 * blocks * page));
  XC_RETURN_IF_ERROR(payloads_.Reserve(2 * blocks * page));
  run_blocks_ = blocks;
  return absl::OkStatus();
}

void DevicePages::Forget(const DeviceCodecHandle& codec) {
  if (staged_codec_ != &codec) return;
  DropStaged();
  staged_codec_ = nullptr;
}

void DevicePages::DropStaged() {
  // They may be on their way.
  if (!staged_.empty()) ops_.Synchronize(StreamId::kCopy);
  staged_.clear();
}

size_t DevicePages::PlaceOf(const DeviceCodecHandle& codec, size_t half,
                            size_t i) const {
  return (half * run_blocks_ + i) * RoundUp(codec.codec().payload_bytes());
}

void DevicePages::CopyPart(const DeviceCodecHandle& codec, LayerRange layers,
                           size_t half, std::span<const PageJob> jobs,
                           std::span<const uint8_t* const> to) {
  const size_t from = codec.codec().payload_at(layers.begin);
  const size_t num_bytes = codec.codec().payload_at(layers.end) - from;
  pool_.ParallelFor(static_cast<int64_t>(jobs.size()), [&](int64_t n, int) {
    const auto i = static_cast<size_t>(n);
    std::memcpy(staging_.as<uint8_t>() + PlaceOf(codec, half, i) + from,
                jobs[i].payload.data() + from, num_bytes);
  });
  for (size_t i = 0; i < jobs.size(); ++i) {
    ops_.CopyToDevice(StreamId::kCopy, const_cast<uint8_t*>(to[i]) + from,
                      staging_.as<uint8_t>() + PlaceOf(codec, half, i) + from,
                      num_bytes);
  }
}

int64_t DevicePages::Stage(const DeviceCodecHandle& codec,
                           std::span<const PageJob> jobs) {
  if (codec.device_codec() == nullptr || jobs.empty() ||
      !ReservePayloads(codec, kRematBlocks).ok()) {
    return 0;
  }
  jobs = jobs.first(std::min(jobs.size(), run_blocks_));
  std::vector<const uint8_t*> to;
  staged_.clear();
  for (const PageJob& job : jobs) {
    to.push_back(payloads_.as<uint8_t>() + PlaceOf(codec, 0, to.size()));
    staged_.push_back({job.block_index, job.payload.data(), job.checksum});
  }
  staged_codec_ = &codec;
  ops_.Wait(StreamId::kCopy, Decoded(0));
  for (int part = 0; part < kParts; ++part) {
    const LayerRange layers = PartOf(shape_.num_layers, part);
    ops_.WaitForEvent(Copied(0, part));
    CopyPart(codec, layers, 0, jobs, to);
    ops_.Record(StreamId::kCopy, Copied(0, part));
  }
  return static_cast<int64_t>(jobs.size());
}

size_t DevicePages::NumStaged(const DeviceCodecHandle& codec,
                              std::span<const PageJob> jobs) const {
  if (staged_codec_ != &codec) return 0;
  const size_t most = std::min(jobs.size(), staged_.size());
  for (size_t i = 0; i < most; ++i) {
    if (staged_[i].block_index != jobs[i].block_index ||
        staged_[i].payload != jobs[i].payload.data() ||
        staged_[i].checksum != jobs[i].checksum ||
        jobs[i].kept_payload != nullptr) {
      return i;
    }
  }
  return most;
}

absl::Status DevicePages::RematOnDevice(const DeviceCodecHandle& codec,
                                        std::span<PageJob> jobs,
                                        bool keep_staged) {
  const int64_t stride = LayerStride(shape_);
  XC_RETURN_IF_ERROR(
      ReservePayloads(codec, std::min<size_t>(kRematBlocks, jobs.size())));
  // What is staged is a run, the first one; what stays so is in the first half.
  keep_staged &= !staged_.empty();
  const size_t num_staged = keep_staged ? 0 : NumStaged(codec, jobs);
  if (!keep_staged) staged_.clear();
  const auto half_of = [&](size_t run) { return keep_staged ? 1 : run % 2; };
  std::vector<size_t> ends;
  for (size_t end = num_staged; end < jobs.size();) {
    if (end > 0) ends.push_back(end);
    end += std::min<size_t>(run_blocks_, kRematBlocks);
  }
  ends.push_back(jobs.size());
  XC_RETURN_IF_ERROR(
      scratch_tiles_.Reserve(std::min<size_t>(kRematBlocks, jobs.size()) *
                             static_cast<size_t>(stride) * sizeof(uint16_t)));
  XC_RETURN_IF_ERROR(host_invalid_.Reserve(jobs.size() * sizeof(int32_t)));

  std::vector<const uint8_t*> payloads(jobs.size());
  std::vector<BlockTarget> targets(jobs.size());
  size_t first = 0;
  for (size_t run = 0; run < ends.size(); first = ends[run++]) {
    for (size_t i = first; i < ends[run]; ++i) {
      payloads[i] = jobs[i].kept_payload != nullptr
                        ? jobs[i].kept_payload
                        : payloads_.as<uint8_t>() +
                              PlaceOf(codec, half_of(run), i - first);
      BlockTarget& target = targets[i];
      target.tiles = jobs[i].tiles;
      target.layer_stride = stride;
      if (target.tiles == nullptr) {
        target.tiles = scratch_tiles_.as<uint16_t>() +
                       static_cast<int64_t>(i - first) * stride;
        target.layer_stride = 0;
      }
      target.first_position =
          static_cast<int32_t>(jobs[i].block_index * kBlockTokens);
      target.first_row = FirstRow(jobs[i].block_index);
    }
  }
  tables_.Clear();
  const size_t payloads_at = tables_.Add(payloads);
  const size_t targets_at = tables_.Add(targets);
  const size_t invalid_at = tables_.Add(std::vector<int32_t>(jobs.size()));
  XC_RETURN_IF_ERROR(tables_.Upload());

  first = 0;
  for (size_t run = 0; run < ends.size(); first = ends[run++]) {
    const size_t half = half_of(run);
    const size_t count = ends[run] - first;
    const bool copied = run == 0 && num_staged > 0;
    RematBatch batch;
    batch.num_blocks = static_cast<int>(count);
    batch.payloads = tables_.At<const uint8_t*>(payloads_at) + first;
    batch.targets = tables_.At<BlockTarget>(targets_at) + first;
    batch.invalid = tables_.At<int32_t>(invalid_at) + first;
    // The device's memory is free once it was decoded, a part's of the pinned
    // memory once it was copied.
    if (!copied) ops_.Wait(StreamId::kCopy, Decoded(half));
    for (int part = 0; part < kParts; ++part) {
      const LayerRange layers = PartOf(shape_.num_layers, part);
      if (!copied) {
        ops_.WaitForEvent(Copied(half, part));
        CopyPart(codec, layers, half, jobs.subspan(first, count),
                 std::span(payloads).subspan(first, count));
        ops_.Record(StreamId::kCopy, Copied(half, part));
      }
      ops_.Wait(StreamId::kCompute, Copied(half, part));
      for (int layer = layers.begin; layer < layers.end; ++layer) {
        remat_.Layer(*codec.device_codec(), layer, batch);
      }
    }
    ops_.Record(StreamId::kCompute, Decoded(half));
  }
  ops_.CopyToHost(StreamId::kCompute, host_invalid_.as<void>(),
                  tables_.At<int32_t>(invalid_at),
                  jobs.size() * sizeof(int32_t));
  ops_.Synchronize(StreamId::kCompute);
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (host_invalid_.as<int32_t>()[i] != 0) {
      jobs[i].status = InvalidScales(jobs[i].block_index);
    }
  }
  return absl::OkStatus();
}

absl::Status DevicePages::RematThroughHost(const DeviceCodecHandle& codec,
                                           std::span<PageJob> jobs) {
  const auto side = static_cast<size_t>(kBlockTokens * shape_.kv_dim());
  const bool final_stage = codec.codec().remat_stage() == RematStage::kFinal;
  const size_t layer_bytes =
      2 * side * (final_stage ? sizeof(uint16_t) : sizeof(float));
  XC_RETURN_IF_ERROR(
      host_rows_.Reserve(static_cast<size_t>(shape_.num_layers) * layer_bytes));
  std::vector<BlockTarget> targets(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    targets[i].tiles = jobs[i].tiles;
    targets[i].layer_stride = LayerStride(shape_);
    targets[i].first_position =
        static_cast<int32_t>(jobs[i].block_index * kBlockTokens);
    targets[i].first_row = FirstRow(jobs[i].block_index);
  }
  tables_.Clear();
  const size_t targets_at = tables_.Add(targets);
  const size_t rows_at =
      tables_.Add(std::vector<const uint8_t*>{remat_.host_rows()});
  XC_RETURN_IF_ERROR(tables_.Upload());

  for (size_t i = 0; i < jobs.size(); ++i) {
    PageJob& job = jobs[i];
    const std::vector<LayerRange> ranges =
        codec.codec().SplitLayers(4 * pool_.num_threads());
    std::vector<absl::Status> statuses(ranges.size());
    pool_.ParallelFor(static_cast<int64_t>(ranges.size()), [&](int64_t r, int) {
      const auto at = static_cast<size_t>(r);
      statuses[at] = codec.codec().RematLayers(
          ranges[at], job.payload, FirstRow(job.block_index),
          [&](int layer, const RematRows& rows) {
            uint8_t* to = host_rows_.as<uint8_t>() +
                          static_cast<size_t>(layer) * layer_bytes;
            const auto put = [&](const void* k, const void* v) {
              std::memcpy(to, k, layer_bytes / 2);
              std::memcpy(to + layer_bytes / 2, v, layer_bytes / 2);
            };
            final_stage ? put(rows.k_final, rows.v_final)
                        : put(rows.k_pre, rows.v_pre);
          });
    });
    for (const absl::Status& status : statuses) {
      if (job.status.ok() && !status.ok()) {
        job.status = absl::DataLossError(absl::StrCat(
            "page of block ", job.block_index, ": ", status.message()));
      }
    }
    if (!job.status.ok()) continue;
    for (int layer = 0; layer < shape_.num_layers; ++layer) {
      remat_.HostLayer(
          layer, final_stage,
          host_rows_.as<uint8_t>() + static_cast<size_t>(layer) * layer_bytes,
          tables_.At<const uint8_t*>(rows_at),
          tables_.At<BlockTarget>(targets_at) + i);
    }
    ops_.Synchronize(StreamId::kCompute);
  }
  return absl::OkStatus();
}

absl::Status DevicePages::Seal(const DeviceCodecHandle& codec,
                               std::span<SealJob> jobs) {
  const DeviceCodec* device_codec = codec.device_codec();
  const bool on_device =
      device_codec != nullptr && device_codec->seal_floats() > 0;
  for (size_t first = 0; first < jobs.size(); first += kSealBlocks) {
    const auto some =
        jobs.subspan(first, std::min(kSealBlocks, jobs.size() - first));
    XC_RETURN_IF_ERROR(on_device ? SealOnDevice(codec, some)
                                 : SealOnHost(codec, some));
  }
  return absl::OkStatus();
}

absl::Status DevicePages::SealOnDevice(const DeviceCodecHandle& codec,
                                       std::span<SealJob> jobs) {
  const DeviceCodec& device_codec = *codec.device_codec();
  const size_t page = RoundUp(codec.codec().payload_bytes());
  const size_t flags = static_cast<size_t>(shape_.num_layers) * jobs.size();
  XC_RETURN_IF_ERROR(sealed_staging_.Reserve(jobs.size() * page));
  XC_RETURN_IF_ERROR(sealed_payloads_.Reserve(jobs.size() * page));
  XC_RETURN_IF_ERROR(host_invalid_.Reserve(flags * sizeof(int32_t)));
  XC_RETURN_IF_ERROR(seal_rows_.Reserve(
      jobs.size() * device_codec.seal_floats() * sizeof(float)));
  XC_RETURN_IF_ERROR(seal_ranges_.Reserve(
      2 * jobs.size() * device_codec.seal_units() * sizeof(float)));

  // The rows of each kind, of every block.
  const LiveRowsLayout& layout = codec.live_rows();
  const auto sources = [&](float* (LiveRowsLayout::*part)(float*, int) const) {
    std::vector<SealSource> out(jobs.size());
    for (size_t i = 0; i < jobs.size(); ++i) {
      out[i].rows = (layout.*part)(const_cast<float*>(jobs[i].live_rows), 0);
      out[i].payload = sealed_payloads_.as<uint8_t>() + i * page;
      out[i].first_row = FirstRow(jobs[i].block_index);
    }
    return tables_.Add(out);
  };
  tables_.Clear();
  const size_t unit_x_at = sources(&LiveRowsLayout::unit_x);
  const size_t rms_at = sources(&LiveRowsLayout::rms);
  const size_t k_pre_at = sources(&LiveRowsLayout::k_pre);
  const size_t v_pre_at = sources(&LiveRowsLayout::v_pre);
  std::vector<const uint8_t*> payloads(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    payloads[i] = sealed_payloads_.as<uint8_t>() + i * page;
  }
  const size_t payloads_at = tables_.Add(payloads);
  const size_t invalid_at = tables_.Add(std::vector<int32_t>(flags));
  XC_RETURN_IF_ERROR(tables_.Upload());

  SealBatch batch;
  batch.num_blocks = static_cast<int>(jobs.size());
  batch.unit_x = tables_.At<SealSource>(unit_x_at);
  batch.rms = tables_.At<SealSource>(rms_at);
  batch.k_pre = tables_.At<SealSource>(k_pre_at);
  batch.v_pre = tables_.At<SealSource>(v_pre_at);
  batch.payloads = tables_.At<const uint8_t*>(payloads_at);
  batch.invalid = tables_.At<int32_t>(invalid_at);
  for (int layer = 0; layer < shape_.num_layers; ++layer) {
    device_codec.Seal(ops_, layer, batch,
                      {seal_rows_.as<float>(), seal_ranges_.as<float>()});
    batch.invalid += jobs.size();
  }
  ops_.CopyToHost(StreamId::kCompute, sealed_staging_.as<void>(),
                  sealed_payloads_.as<void>(), jobs.size() * page);
  ops_.CopyToHost(StreamId::kCompute, host_invalid_.as<void>(),
                  tables_.At<int32_t>(invalid_at), flags * sizeof(int32_t));
  ops_.Synchronize(StreamId::kCompute);
  for (size_t f = 0; f < flags; ++f) {
    if (host_invalid_.as<int32_t>()[f] == 0) continue;
    return absl::InternalError(
        absl::StrCat("sealing block ", jobs[f % jobs.size()].block_index,
                     ": a value is not finite at layer ", f / jobs.size()));
  }
  for (size_t i = 0; i < jobs.size(); ++i) {
    std::memcpy(jobs[i].payload.data(),
                sealed_staging_.as<uint8_t>() + i * page,
                jobs[i].payload.size());
  }
  return absl::OkStatus();
}

absl::Status DevicePages::SealOnHost(const DeviceCodecHandle& codec,
                                     std::span<SealJob> jobs) {
  const bool wants_final = (codec.codec().live_rows() & kLiveKvFinal) != 0;
  const size_t live_bytes = codec.live_rows().bytes();
  const size_t tile_bytes = wants_final ? shape_.tile_bytes() : 0;
  const size_t job_bytes = live_bytes + tile_bytes;
  XC_RETURN_IF_ERROR(host_rows_.Reserve(jobs.size() * job_bytes));
  for (size_t i = 0; i < jobs.size(); ++i) {
    uint8_t* to = host_rows_.as<uint8_t>() + i * job_bytes;
    if (live_bytes > 0) {
      ops_.CopyToHost(StreamId::kCompute, to, jobs[i].live_rows, live_bytes);
    }
    if (wants_final) {
      ops_.CopyToHost(StreamId::kCompute, to + live_bytes, jobs[i].tiles,
                      tile_bytes);
    }
  }
  ops_.Synchronize(StreamId::kCompute);

  struct Task {
    size_t job;
    LayerRange range;
    absl::Status status;
  };
  std::vector<Task> tasks;
  const int64_t wanted =
      (4 * pool_.num_threads() + static_cast<int64_t>(jobs.size()) - 1) /
      static_cast<int64_t>(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    for (const LayerRange& range : codec.codec().SplitLayers(wanted)) {
      tasks.push_back({i, range, absl::OkStatus()});
    }
  }
  pool_.ParallelFor(static_cast<int64_t>(tasks.size()), [&](int64_t t, int) {
    Task& task = tasks[static_cast<size_t>(t)];
    const SealJob& job = jobs[task.job];
    uint8_t* base = host_rows_.as<uint8_t>() + task.job * job_bytes;
    auto* rows = reinterpret_cast<float*>(base);
    const auto* tiles = reinterpret_cast<const uint16_t*>(base + live_bytes);
    const auto side = static_cast<size_t>(kBlockTokens * shape_.kv_dim());
    std::vector<uint16_t> final_rows(wants_final ? 2 * side : 0);
    const LiveRowsLayout& layout = codec.live_rows();
    task.status = codec.codec().SealLayers(
        task.range,
        [&](int layer) {
          LayerRows in;
          in.unit_x = layout.unit_x(rows, layer);
          in.rms = layout.rms(rows, layer);
          in.k_pre = layout.k_pre(rows, layer);
          in.v_pre = layout.v_pre(rows, layer);
          if (wants_final) {
            GatherRows(shape_, tiles + layer * LayerStride(shape_),
                       final_rows.data(), final_rows.data() + side);
            in.k_final = final_rows.data();
            in.v_final = final_rows.data() + side;
          }
          return in;
        },
        FirstRow(job.block_index), job.payload);
  });
  for (const Task& task : tasks) {
    if (task.status.ok()) continue;
    return absl::InternalError(absl::StrCat("sealing block ",
                                            jobs[task.job].block_index, ": ",
                                            task.status.message()));
  }
  return absl::OkStatus();
}

}  // namespace xcache::cuda
