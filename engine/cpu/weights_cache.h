// A model's packed weights in a file, so that they are packed once and not at
// each start. A cache: what of it is not there, damaged, of another model or of
// another layout is packed again, and the file replaced.
//
// The file is MODEL_FP.xcwt, MODEL_FP in hexadecimal, in the folder given:
//   0    8  "xcweight"
//   8    8  version of the layout, little-endian
//   16   32 SHA-256 of the model's file
//   48   32 SHA-256 of what the matrices are: names, types, shapes, sizes
//   80   32 SHA-256 of the first part of the first matrix, then those of the
//           other parts, of some MB each (CpuMatrix::num_parts)
//   ...     zeros up to a multiple of 64, then the bytes of the matrices, each
//           followed by zeros up to a multiple of 64
// All but the digests is known before a file is read: one that begins otherwise
// is not looked at further, and nothing in it says how much to read.
#ifndef XCACHE_ENGINE_CPU_WEIGHTS_CACHE_H_
#define XCACHE_ENGINE_CPU_WEIGHTS_CACHE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/sha256.h"
#include "engine/cpu/weights.h"
#include "engine/model/model.h"

namespace xcache {

class WeightsCache {
 public:
  // Looks for the file; why one that is there is not used is logged.
  // INVALID_ARGUMENT: a tensor that cannot be packed. The views must outlive
  // the cache.
  static absl::StatusOr<std::unique_ptr<WeightsCache>> Open(
      const std::string& dir, const Digest& model_fp,
      std::span<const TensorView> tensors);
  ~WeightsCache();
  WeightsCache(const WeightsCache&) = delete;
  WeightsCache& operator=(const WeightsCache&) = delete;

  // The parts of one matrix, read in order, each checked. Those of different
  // matrices may be used at the same time.
  class Matrix final : public PackedParts {
   public:
    Matrix(WeightsCache& cache, size_t index)
        : cache_(cache), index_(index), at_(cache.offsets_[index]) {}
    bool Read(size_t part, std::span<uint8_t> to) override;
    void Add(size_t part, std::span<const uint8_t> bytes) override;

   private:
    WeightsCache& cache_;
    const size_t index_;
    size_t at_;  // of the next part
  };
  Matrix matrix(size_t index) { return {*this, index}; }

  // Replaces the file by one of all matrices, where something of them was not
  // in it. Where that fails, it is logged.
  void Save(std::span<const CpuMatrix* const> matrices) const;

 private:
  WeightsCache() = default;
  std::string Path() const { return dir_ + "/" + name_; }

  std::string dir_, name_;
  std::vector<TensorView> tensors_;
  std::string start_;  // of the file, up to the digests
  // Of each matrix: where its bytes are in the file, and the first of its
  // parts' digests.
  std::vector<size_t> offsets_, first_parts_;
  std::vector<Digest> digests_;  // of all parts
  int fd_ = -1;                  // where there is a file to be read
  std::atomic<bool> added_{false};
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_CPU_WEIGHTS_CACHE_H_
