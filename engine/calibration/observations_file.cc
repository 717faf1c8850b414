#include "engine/calibration/observations_file.h"

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <type_traits>
#include <vector>

#include "absl/strings/str_cat.h"

namespace xcache {
namespace {

// Goes through the fields in order, either way.
template <typename Stream>
class Fields {
 public:
  static constexpr bool kReads = std::is_same_v<Stream, std::ifstream>;

  explicit Fields(Stream& stream) : stream_(stream) {}

  template <typename T>
  void Values(T* values, size_t n) {
    const auto bytes = static_cast<std::streamsize>(n * sizeof(T));
    if constexpr (kReads) {
      stream_.read(reinterpret_cast<char*>(values), bytes);
    } else {
      stream_.write(reinterpret_cast<const char*>(values), bytes);
    }
  }
  // A size: 0 where it cannot be read.
  uint64_t Size(uint64_t n) {
    Values(&n, 1);
    return stream_.good() ? n : 0;
  }
  template <typename T>
  void Field(std::vector<T>& values) {
    const uint64_t n = Size(values.size());
    if constexpr (kReads) values.resize(n);
    if constexpr (std::is_trivially_copyable_v<T>) {
      Values(values.data(), values.size());
    } else {
      for (T& value : values) Field(value);
    }
  }
  template <int kRows, int kCols>
  void Field(Eigen::Matrix<double, kRows, kCols>& m) {
    const auto rows =
        static_cast<Eigen::Index>(Size(static_cast<uint64_t>(m.rows())));
    const auto cols =
        static_cast<Eigen::Index>(Size(static_cast<uint64_t>(m.cols())));
    if constexpr (kReads) m.resize(rows, cols);
    Values(m.data(), static_cast<size_t>(m.size()));
  }
  void All(Observations& seen) {
    Values(&seen.shape, 1);
    Field(seen.windows);
    Field(seen.latents);
    Field(seen.covariance);
    Field(seen.fisher);
    Field(seen.query_squares);
    Field(seen.gradient_windows);
    Field(seen.sensitivity);
  }

 private:
  Stream& stream_;
};

}  // namespace

absl::Status SaveObservations(const Observations& seen, const Digest& inputs,
                              const std::string& path) {
  const std::string scratch = path + ".new";
  std::ofstream out(scratch, std::ios::binary);
  Fields fields(out);
  Digest digest = inputs;
  fields.Values(digest.data(), digest.size());
  // Written only: the fields go through one door both ways.
  fields.All(const_cast<Observations&>(seen));
  // Whether the file is whole.
  fields.Values(digest.data(), digest.size());
  out.close();
  if (!out.good() || std::rename(scratch.c_str(), path.c_str()) != 0) {
    std::remove(scratch.c_str());
    return absl::UnavailableError(absl::StrCat("cannot write ", path));
  }
  return absl::OkStatus();
}

absl::StatusOr<Observations> LoadObservations(const Digest& inputs,
                                              const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  Fields fields(in);
  Digest digest{};
  fields.Values(digest.data(), digest.size());
  if (!in.good() || digest != inputs) {
    return absl::NotFoundError(
        absl::StrCat(path, ": no observations of these inputs"));
  }
  Observations seen;
  fields.All(seen);
  digest = {};
  fields.Values(digest.data(), digest.size());
  if (!in.good() || digest != inputs) {
    return absl::NotFoundError(absl::StrCat(path, ": not whole"));
  }
  return seen;
}

}  // namespace xcache
