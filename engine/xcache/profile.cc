// Profile files: format in PROFILE_FORMAT.md. How a profile's matrices are
// computed is in profile_make.cc.
#include "engine/xcache/profile.h"

#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/crc32c.h"
#include "engine/base/file.h"
#include "engine/base/log.h"
#include "engine/base/replace_file.h"
#include "engine/base/status_macros.h"
#include "engine/xcache/little_endian.h"
#include "engine/xcache/profile_impl.h"
#include "engine/xcache/transform/transform_data.h"

namespace xcache {
namespace {

static_assert(std::endian::native == std::endian::little,
              "matrices are copied as they lie in memory");

constexpr uint32_t kMagic = 0x46504358;  // "XCPF"
constexpr size_t kHeaderBytes = 64;
constexpr size_t kModelFpAt = 32;
constexpr size_t kCrcBytes = 4;
// No model comes near; keeps products of three of them within 64 bits.
constexpr uint32_t kMaxDimension = 1u << 20;

class ProfileData final : public Profile {
 public:
  ProfileData(const ProfileShape& shape, const Digest& model_fp,
              std::vector<float> values)
      : shape_(shape),
        model_fp_(model_fp),
        matrices_(MatricesOf(shape)),
        values_(std::move(values)),
        digest_(Sha256Of(Serialize())) {}

  ProfileKind kind() const override { return shape_.kind; }
  const Digest& digest() const override { return digest_; }

  std::span<const float> matrix(int layer,
                                std::string_view name) const override {
    size_t at = static_cast<size_t>(layer) * FloatsPerLayer(shape_);
    for (const MatrixShape& m : matrices_) {
      const size_t n = static_cast<size_t>(m.rows) * m.cols;
      if (m.name == name) return std::span(values_).subspan(at, n);
      at += n;
    }
    return {};
  }

  std::string Serialize() const override {
    return SerializeProfile(kProfileVersion, shape_, model_fp_,
                            {reinterpret_cast<const char*>(values_.data()),
                             values_.size() * sizeof(float)});
  }

 private:
  const ProfileShape shape_;
  const Digest model_fp_;
  const std::vector<MatrixShape> matrices_;
  const std::vector<float> values_;
  const Digest digest_;
};

absl::Status Corrupt(std::string_view field, uint64_t expected,
                     uint64_t found) {
  return absl::DataLossError(absl::StrCat("profile: ", std::string(field),
                                          ": expected ", expected, ", found ",
                                          found));
}

std::string NameOf(ProfileKind kind, const Digest& model_fp) {
  return absl::StrCat(std::string(ProfileKindName(kind)), "-",
                      ToHex(model_fp).substr(0, 16), ".xcpf");
}

std::string PathOf(const std::string& dir, ProfileKind kind,
                   const Digest& model_fp) {
  return absl::StrCat(dir, "/", NameOf(kind, model_fp));
}

}  // namespace

std::string_view ProfileKindName(ProfileKind kind) {
  switch (kind) {
    case ProfileKind::kNone:
      return "none";
    case ProfileKind::kGqaSvd:
      return "gqa-svd";
    case ProfileKind::kClGqaSvd:
      return "cl-gqa-svd";
    case ProfileKind::kTransform:
      return "transform";
  }
  return "unknown";
}

std::vector<MatrixShape> MatricesOf(const ProfileShape& shape) {
  switch (shape.kind) {
    case ProfileKind::kNone:
    case ProfileKind::kTransform:
      return {};
    case ProfileKind::kGqaSvd:
      return {{"k_spectrum", 1, shape.kv_dim},
              {"k_basis", shape.kv_dim, shape.kv_dim}};
    case ProfileKind::kClGqaSvd: {
      const uint32_t rank = std::min(shape.d_model, 2 * shape.kv_dim);
      return {{"kv_spectrum", 1, rank}, {"kv_basis", rank, shape.d_model}};
    }
  }
  return {};
}

size_t FloatsPerLayer(const ProfileShape& shape) {
  size_t n = 0;
  for (const MatrixShape& m : MatricesOf(shape)) {
    n += static_cast<size_t>(m.rows) * m.cols;
  }
  return n;
}

std::unique_ptr<const Profile> NewProfile(const ProfileShape& shape,
                                          const Digest& model_fp,
                                          std::vector<float> values) {
  return std::make_unique<const ProfileData>(shape, model_fp,
                                             std::move(values));
}

std::string SerializeProfile(uint16_t version, const ProfileShape& shape,
                             const Digest& model_fp, std::string_view body) {
  std::string out(kHeaderBytes + body.size() + kCrcBytes, '\0');
  StoreLe32(&out[0], kMagic);
  StoreLe16(&out[4], version);
  StoreLe16(&out[6], static_cast<uint16_t>(kHeaderBytes));
  StoreLe32(&out[8], static_cast<uint32_t>(shape.kind));
  StoreLe32(&out[12], shape.num_layers);
  StoreLe32(&out[16], shape.d_model);
  StoreLe32(&out[20], shape.kv_dim);
  StoreLe64(&out[24], body.size());
  std::memcpy(&out[kModelFpAt], model_fp.data(), model_fp.size());
  std::memcpy(&out[kHeaderBytes], body.data(), body.size());
  StoreLe32(&out[kHeaderBytes + body.size()],
            Crc32c(out.data(), kHeaderBytes + body.size()));
  return out;
}

absl::StatusOr<std::unique_ptr<const Profile>> Profile::Parse(
    std::string_view bytes, const Digest& model_fp, ProfileKind kind) {
  const char* p = bytes.data();
  if (bytes.size() < kHeaderBytes + kCrcBytes) {
    return absl::DataLossError(absl::StrCat("profile: expected at least ",
                                            kHeaderBytes + kCrcBytes,
                                            " bytes, found ", bytes.size()));
  }
  if (LoadLe32(p) != kMagic) return Corrupt("magic", kMagic, LoadLe32(p));
  const uint16_t expected = kind == ProfileKind::kTransform
                                ? kTransformProfileVersion
                                : kProfileVersion;
  if (const uint16_t version = LoadLe16(p + 4); version != expected) {
    return absl::FailedPreconditionError(absl::StrCat(
        "profile: format version: expected ", expected, ", found ", version));
  }
  const size_t covered = bytes.size() - kCrcBytes;
  if (const uint32_t crc = Crc32c(p, covered); LoadLe32(p + covered) != crc) {
    return Corrupt("checksum", crc, LoadLe32(p + covered));
  }
  if (LoadLe16(p + 6) != kHeaderBytes) {
    return Corrupt("header bytes", kHeaderBytes, LoadLe16(p + 6));
  }
  if (LoadLe32(p + 8) != static_cast<uint32_t>(kind)) {
    return absl::FailedPreconditionError(
        absl::StrCat("profile: kind: expected ", static_cast<uint32_t>(kind),
                     ", found ", LoadLe32(p + 8)));
  }
  if (std::memcmp(p + kModelFpAt, model_fp.data(), model_fp.size()) != 0) {
    return absl::FailedPreconditionError("profile: of another model");
  }
  const ProfileShape shape{kind, LoadLe32(p + 12), LoadLe32(p + 16),
                           LoadLe32(p + 20)};
  for (uint32_t dimension : {shape.num_layers, shape.d_model, shape.kv_dim}) {
    if (dimension == 0 || dimension > kMaxDimension) {
      return Corrupt("a dimension", kMaxDimension, dimension);
    }
  }
  // Divided, not multiplied: a product of the file's numbers could wrap.
  const uint64_t num_bytes = covered - kHeaderBytes;
  if (kind == ProfileKind::kTransform) {
    if (LoadLe64(p + 24) != num_bytes) {
      return Corrupt("bytes of the body", num_bytes, LoadLe64(p + 24));
    }
    return ParseTransformProfile(
        bytes.substr(kHeaderBytes, num_bytes),
        {static_cast<int>(shape.num_layers), static_cast<int>(shape.d_model),
         static_cast<int>(shape.kv_dim)},
        model_fp, Sha256Of(bytes));
  }
  const uint64_t layer_bytes = FloatsPerLayer(shape) * sizeof(float);
  if (LoadLe64(p + 24) != num_bytes || num_bytes % layer_bytes != 0 ||
      num_bytes / layer_bytes != shape.num_layers) {
    return Corrupt("bytes of the matrices", num_bytes, LoadLe64(p + 24));
  }
  std::vector<float> values(num_bytes / sizeof(float));
  std::memcpy(values.data(), p + kHeaderBytes, num_bytes);
  for (float v : values) {
    if (!std::isfinite(v)) {
      return absl::DataLossError("profile: a number is not finite");
    }
  }
  return NewProfile(shape, model_fp, std::move(values));
}

absl::Status Profile::Save(const Profile& profile, const std::string& dir,
                           const Digest& model_fp) {
  if (mkdir(dir.c_str(), 0700) != 0 && errno != EEXIST) {
    return absl::InternalError(
        absl::StrCat("cannot create ", dir, ": ", std::strerror(errno)));
  }
  const std::string bytes = profile.Serialize();
  const std::string_view parts[] = {bytes};
  return ReplaceFile(dir, NameOf(profile.kind(), model_fp), parts);
}

std::optional<size_t> Profile::BytesOnDisk(const std::string& dir,
                                           const Model& model,
                                           ProfileKind kind) {
  if (dir.empty()) return std::nullopt;
  const auto stamp = StampOf(PathOf(dir, kind, model.fingerprint()));
  if (!stamp.ok()) return std::nullopt;
  return static_cast<size_t>(stamp->size);
}

absl::StatusOr<std::unique_ptr<const Profile>> Profile::LoadOrMake(
    const std::string& dir, const Model& model, ProfileKind kind,
    const ProgressFn& progress) {
  if (dir.empty()) return Make(model, kind, progress);
  const std::string path = PathOf(dir, kind, model.fingerprint());
  const absl::StatusOr<FileBytes> bytes = FileBytes::Read(path, {});
  absl::Status unusable = bytes.status();
  if (bytes.ok()) {
    auto profile = Parse({reinterpret_cast<const char*>(bytes->bytes().data()),
                          bytes->bytes().size()},
                         model.fingerprint(), kind);
    if (profile.ok()) return profile;
    unusable = profile.status();
  }
  if (kind == ProfileKind::kTransform && !absl::IsNotFound(unusable)) {
    return absl::Status(unusable.code(),
                        absl::StrCat(path, ": ", unusable.message()));
  }
  if (!absl::IsNotFound(unusable)) {
    XC_LOG_WARN("profile made anew", "path={} reason={}", LogValue(path),
                LogValue(std::string(unusable.message())));
  }
  XC_ASSIGN_OR_RETURN(auto profile, Make(model, kind, progress));
  XC_RETURN_IF_ERROR(Save(*profile, dir, model.fingerprint()));
  return profile;
}

}  // namespace xcache
