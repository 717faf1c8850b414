#include "engine/cpu/weights_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/replace_file.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

constexpr std::string_view kMagic = "xcweight";
// Of what quant_matmul.h and float_matmul.h say: to be raised with each change
// of how a matrix is laid out.
constexpr uint64_t kLayout = 1;
constexpr size_t kAlignment = 64;

size_t Aligned(size_t at) {
  return (at + kAlignment - 1) / kAlignment * kAlignment;
}

std::string_view View(const void* data, size_t size) {
  return {static_cast<const char*>(data), size};
}

// Whether there are that many bytes at `at`.
bool ReadAt(int fd, size_t at, void* to, size_t size) {
  auto* bytes = static_cast<uint8_t*>(to);
  while (size > 0) {
    const ssize_t n = pread(fd, bytes, std::min(size, size_t{64} << 20),
                            static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    bytes += n;
    at += static_cast<size_t>(n);
    size -= static_cast<size_t>(n);
  }
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<WeightsCache>> WeightsCache::Open(
    const std::string& dir, const Digest& model_fp,
    std::span<const TensorView> tensors) {
  std::unique_ptr<WeightsCache> cache(new WeightsCache());
  cache->dir_ = dir;
  cache->name_ = ToHex(model_fp) + ".xcwt";
  cache->tensors_.assign(tensors.begin(), tensors.end());
  cache->start_ = std::string(kMagic);
  cache->start_.append(View(&kLayout, sizeof(kLayout)));
  cache->start_.append(View(model_fp.data(), model_fp.size()));
  std::vector<size_t> sizes;
  size_t num_parts = 0;
  Sha256 what;
  for (const TensorView& tensor : tensors) {
    XC_ASSIGN_OR_RETURN(const CpuMatrix shape, CpuMatrix::ShapeOf(tensor));
    const uint64_t numbers[] = {
        static_cast<uint64_t>(tensor.type), static_cast<uint64_t>(tensor.rows),
        static_cast<uint64_t>(tensor.cols), shape.bytes(), shape.num_parts()};
    what.Field(tensor.name).Update(numbers, sizeof(numbers));
    sizes.push_back(shape.bytes());
    cache->first_parts_.push_back(num_parts);
    num_parts += shape.num_parts();
  }
  cache->digests_.resize(num_parts);
  const size_t digests_bytes = num_parts * sizeof(Digest);
  const Digest shapes = what.Finish();
  cache->start_.append(View(shapes.data(), shapes.size()));
  size_t at = Aligned(cache->start_.size() + digests_bytes);
  for (const size_t size : sizes) {
    cache->offsets_.push_back(at);
    at = Aligned(at + size);
  }

  const std::string path = cache->Path();
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0 && errno == ENOENT) return cache;
  const char* unusable = nullptr;
  std::string found(cache->start_.size(), '\0');
  struct stat info {};
  if (fd < 0 || fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    unusable = fd < 0 ? std::strerror(errno) : "not a file";
  } else if (info.st_size != static_cast<off_t>(at)) {
    unusable = "another size than these weights have";
  } else if (!ReadAt(fd, 0, found.data(), found.size()) ||
             !ReadAt(fd, found.size(), cache->digests_.data(), digests_bytes)) {
    unusable = "it cannot be read";
  } else if (found != cache->start_) {
    unusable = "of another model or layout";
  }
  if (unusable == nullptr) {
    cache->fd_ = fd;
    return cache;
  }
  if (fd >= 0) close(fd);
  XC_LOG_WARN("packed weights made anew", "path={} reason={}", LogValue(path),
              LogValue(unusable));
  return cache;
}

WeightsCache::~WeightsCache() {
  if (fd_ >= 0) close(fd_);
}

bool WeightsCache::Matrix::Read(size_t part, std::span<uint8_t> to) {
  const size_t at = at_;
  at_ += to.size();
  if (cache_.fd_ < 0) return false;
  if (ReadAt(cache_.fd_, at, to.data(), to.size()) &&
      Sha256Of(View(to.data(), to.size())) ==
          cache_.digests_[cache_.first_parts_[index_] + part]) {
    return true;
  }
  XC_LOG_WARN(
      "packed weights made anew", "path={} reason={}", LogValue(cache_.Path()),
      LogValue(absl::StrCat("damage in tensor ",
                            std::string(cache_.tensors_[index_].name))));
  return false;
}

void WeightsCache::Matrix::Add(size_t part, std::span<const uint8_t> bytes) {
  cache_.digests_[cache_.first_parts_[index_] + part] =
      Sha256Of(View(bytes.data(), bytes.size()));
  cache_.added_.store(true, std::memory_order_relaxed);
}

void WeightsCache::Save(std::span<const CpuMatrix* const> matrices) const {
  if (!added_.load(std::memory_order_relaxed)) {
    XC_LOG_INFO("packed weights read", "path={}", LogValue(Path()));
    return;
  }
  constexpr char kZeros[kAlignment] = {};
  std::vector<std::string_view> parts = {
      start_, View(digests_.data(), digests_.size() * sizeof(Digest))};
  size_t at = parts[0].size() + parts[1].size();
  for (size_t i = 0; i < matrices.size(); ++i) {
    parts.push_back(View(kZeros, offsets_[i] - at));
    parts.push_back(View(matrices[i]->data(), matrices[i]->bytes()));
    at = offsets_[i] + matrices[i]->bytes();
  }
  parts.push_back(View(kZeros, Aligned(at) - at));
  const absl::Status status = ReplaceFile(dir_, name_, parts);
  if (status.ok()) {
    XC_LOG_INFO("packed weights kept", "path={} bytes={}", LogValue(Path()),
                Aligned(at));
  } else {
    XC_LOG_WARN("packed weights not kept", "reason={}",
                LogValue(std::string(status.message())));
  }
}

}  // namespace xcache
