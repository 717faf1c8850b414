// Computes profiles: the singular value decomposition of each layer's W_k.
#include <algorithm>
#include <cmath>

#include "Eigen/Dense"
#include "absl/strings/str_cat.h"
#include "engine/xcache/profile.h"
#include "engine/xcache/profile_impl.h"

namespace xcache {
namespace {

// Of an eigenvector v only the line is determined: of v and -v take the one
// whose largest component (the first of equal ones) is positive.
double SignOf(const Eigen::Ref<const Eigen::VectorXd>& v) {
  Eigen::Index largest = 0;
  for (Eigen::Index i = 1; i < v.size(); ++i) {
    if (std::abs(v[i]) > std::abs(v[largest])) largest = i;
  }
  return v[largest] < 0.0 ? -1.0 : 1.0;
}

}  // namespace

std::vector<float> MakeGqaSvd(const ProfileShape& shape,
                              const KeyWeightsFn& key_weights,
                              const ProgressFn& progress) {
  const auto k = static_cast<Eigen::Index>(shape.kv_dim);
  const auto d = static_cast<Eigen::Index>(shape.d_model);
  std::vector<float> values(shape.num_layers * FloatsPerLayer(shape));
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> w(k, d);
  float* out = values.data();
  for (uint32_t layer = 0; layer < shape.num_layers; ++layer) {
    if (progress) {
      progress("profile", static_cast<double>(layer) /
                              static_cast<double>(shape.num_layers));
    }
    key_weights(static_cast<int>(layer), w.data());
    // The right singular vectors of W_k are the eigenvectors of W_k^T W_k, [k,
    // k], its singular values the roots of the eigenvalues. That squares the
    // condition number, which costs nothing here: small singular values only
    // steer how bits are spread, and the basis is orthogonal all the same.
    const Eigen::MatrixXd wide = w.cast<double>();
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(
        wide * wide.transpose());
    // Eigen's order is ascending.
    for (Eigen::Index i = k - 1; i >= 0; --i) {
      *out++ =
          static_cast<float>(std::sqrt(std::max(0.0, solver.eigenvalues()[i])));
    }
    for (Eigen::Index i = k - 1; i >= 0; --i) {
      const auto v = solver.eigenvectors().col(i);
      const double sign = SignOf(v);
      for (Eigen::Index j = 0; j < k; ++j) {
        *out++ = static_cast<float>(sign * v[j]);
      }
    }
  }
  if (progress) progress("profile", 1.0);
  return values;
}

absl::StatusOr<std::unique_ptr<const Profile>> Profile::Make(
    const Model& model, ProfileKind kind, const ProgressFn& progress) {
  const HyperParams& h = model.hparams();
  const ProfileShape shape{kind, static_cast<uint32_t>(h.num_layers),
                           static_cast<uint32_t>(h.d_model),
                           static_cast<uint32_t>(h.kv_dim())};
  if (kind != ProfileKind::kGqaSvd) {
    return absl::InternalError(
        absl::StrCat("no profile of kind ", static_cast<uint32_t>(kind)));
  }
  std::vector<float> gain(static_cast<size_t>(h.d_model));
  auto key_weights = [&](int layer, float* out) {
    const LayerTensors& tensors = model.layer(layer);
    DequantizeRow(tensors.attn_norm, 0, gain.data());
    for (int64_t row = 0; row < tensors.wk.rows; ++row) {
      DequantizeRow(tensors.wk, row, out);
      for (float g : gain) *out++ *= g;
    }
  };
  std::vector<float> values = MakeGqaSvd(shape, key_weights, progress);
  for (float v : values) {
    if (!std::isfinite(v)) {
      return absl::InvalidArgumentError(
          "cannot make a profile: the model's weights are not finite");
    }
  }
  return NewProfile(shape, model.fingerprint(), std::move(values));
}

}  // namespace xcache
