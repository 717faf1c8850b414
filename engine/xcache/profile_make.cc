// Computes profiles: singular value decompositions of each layer's W_k and W_v.
#include <algorithm>
#include <cmath>

#include "Eigen/Dense"
#include "absl/strings/str_cat.h"
#include "engine/xcache/profile.h"
#include "engine/xcache/profile_impl.h"

namespace xcache {
namespace {

// Of a singular vector v only the line is determined: of v and -v take the one
// whose largest component (the first of equal ones) is positive.
double SignOf(const Eigen::Ref<const Eigen::VectorXd>& v) {
  Eigen::Index largest = 0;
  for (Eigen::Index i = 1; i < v.size(); ++i) {
    if (std::abs(v[i]) > std::abs(v[largest])) largest = i;
  }
  return v[largest] < 0.0 ? -1.0 : 1.0;
}

// Of a layer's weights as they are handed in.
using RowMajor =
    Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

void Report(const ProgressFn& progress, uint32_t layer, uint32_t num_layers) {
  if (!progress) return;
  progress("profile",
           static_cast<double>(layer) / static_cast<double>(num_layers));
}

}  // namespace

std::vector<float> MakeGqaSvd(const ProfileShape& shape,
                              const ProjectionFn& weights,
                              const ProgressFn& progress) {
  const auto k = static_cast<Eigen::Index>(shape.kv_dim);
  const auto d = static_cast<Eigen::Index>(shape.d_model);
  std::vector<float> values(shape.num_layers * FloatsPerLayer(shape));
  RowMajor w(k, d);
  float* out = values.data();
  for (uint32_t layer = 0; layer < shape.num_layers; ++layer) {
    Report(progress, layer, shape.num_layers);
    weights(static_cast<int>(layer), Projection::kKey, w.data());
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
  Report(progress, 1, 1);
  return values;
}

std::vector<float> MakeClGqaSvd(const ProfileShape& shape,
                                const ProjectionFn& weights,
                                const ProgressFn& progress) {
  const auto k = static_cast<Eigen::Index>(shape.kv_dim);
  const auto d = static_cast<Eigen::Index>(shape.d_model);
  const Eigen::Index rank = std::min(d, 2 * k);
  std::vector<float> values(shape.num_layers * FloatsPerLayer(shape));
  RowMajor half(k, d);
  Eigen::MatrixXd both(d, 2 * k);  // [W_k | W_v]
  float* out = values.data();
  for (uint32_t layer = 0; layer < shape.num_layers; ++layer) {
    Report(progress, layer, shape.num_layers);
    weights(static_cast<int>(layer), Projection::kKey, half.data());
    both.leftCols(k) = half.cast<double>().transpose();
    weights(static_cast<int>(layer), Projection::kValue, half.data());
    both.rightCols(k) = half.cast<double>().transpose();
    // The left singular vectors by a decomposition that keeps them orthogonal
    // where singular values are tiny or zero: the codec's basis must be.
    const Eigen::BDCSVD<Eigen::MatrixXd> svd(both, Eigen::ComputeThinU);
    for (Eigen::Index i = 0; i < rank; ++i) {
      *out++ = static_cast<float>(svd.singularValues()[i]);
    }
    for (Eigen::Index i = 0; i < rank; ++i) {
      const auto v = svd.matrixU().col(i);
      const double sign = SignOf(v);
      for (Eigen::Index j = 0; j < d; ++j) {
        *out++ = static_cast<float>(sign * v[j]);
      }
    }
  }
  Report(progress, 1, 1);
  return values;
}

absl::StatusOr<std::unique_ptr<const Profile>> Profile::Make(
    const Model& model, ProfileKind kind, const ProgressFn& progress) {
  const HyperParams& h = model.hparams();
  const ProfileShape shape{kind, static_cast<uint32_t>(h.num_layers),
                           static_cast<uint32_t>(h.d_model),
                           static_cast<uint32_t>(h.kv_dim())};
  std::vector<float> gain(static_cast<size_t>(h.d_model));
  const ProjectionFn weights = [&](int layer, Projection projection,
                                   float* out) {
    const LayerTensors& tensors = model.layer(layer);
    const TensorView& w =
        projection == Projection::kKey ? tensors.wk : tensors.wv;
    DequantizeRow(tensors.attn_norm, 0, gain.data());
    for (int64_t row = 0; row < w.rows; ++row) {
      DequantizeRow(w, row, out);
      for (float g : gain) *out++ *= g;
    }
  };
  std::vector<float> values;
  switch (kind) {
    case ProfileKind::kNone:
      return absl::InternalError("a profile of kind none");
    case ProfileKind::kTransform:
      return absl::FailedPreconditionError(absl::StrCat(
          "no profile of kind ", std::string(ProfileKindName(kind)),
          " of this model: it is computed from text, by xcache-calibrate, and "
          "looked for in the folder of profiles"));
    case ProfileKind::kGqaSvd:
      values = MakeGqaSvd(shape, weights, progress);
      break;
    case ProfileKind::kClGqaSvd:
      values = MakeClGqaSvd(shape, weights, progress);
      break;
  }
  for (float v : values) {
    if (!std::isfinite(v)) {
      return absl::InvalidArgumentError(
          "cannot make a profile: the model's weights are not finite");
    }
  }
  return NewProfile(shape, model.fingerprint(), std::move(values));
}

}  // namespace xcache
