#include "engine/calibration/token_classes.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "Eigen/Dense"

namespace xcache {
namespace {

// Latents count less than the embedding in the ridge.
constexpr float kLatentScale = 0.25f;
// Position of a row in its window says how many rows read it: known here, not
// when a block is sealed, so its part is estimated and dropped.
constexpr Eigen::Index kNuisances =
    3;  // 1, log of rows after, log of rows before

// Rows [first, first + n) of what classes are guessed from, [n, d + 4 k].
Eigen::MatrixXd Inputs(const TransformData& data, const Observations& seen,
                       const Kernels& kernels, size_t window,
                       const std::vector<float>& unit) {
  const auto n = static_cast<Eigen::Index>(seen.windows[window].size());
  const Eigen::Index d = seen.shape.d_model;
  const Eigen::Index latent = 2 * seen.shape.kv_dim;
  using RowMajor =
      Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Eigen::MatrixXd out = Eigen::MatrixXd::Zero(n, d + 2 * latent);
  out.leftCols(d) =
      Eigen::Map<const RowMajor>(unit.data(), n, d).cast<double>();
  RowMajor rows(n, latent);
  for (Eigen::Index i = 0; i < 2; ++i) {
    const uint32_t layer = data.class_layers[static_cast<size_t>(i)];
    if (layer == 0) continue;
    seen.Latents(kernels, window, static_cast<int>(layer), rows.data());
    out.middleCols(d + i * latent, latent) = rows.cast<double>();
  }
  return out;
}

}  // namespace

std::vector<float> UnitEmbeddings(const Model& model, const Kernels& kernels,
                                  const std::vector<TokenId>& tokens) {
  const auto d = static_cast<size_t>(model.hparams().d_model);
  std::vector<float> row(d), unit(tokens.size() * d);
  for (size_t i = 0; i < tokens.size(); ++i) {
    DequantizeRow(model.token_embd(), tokens[i], row.data());
    kernels.rms_norm(row.data(), nullptr, static_cast<int>(d),
                     model.hparams().rms_norm_eps, nullptr, &unit[i * d]);
  }
  return unit;
}

void FitTokenClasses(const Model& model, const Observations& seen,
                     const Kernels& kernels, double step_power,
                     TransformData* data) {
  const auto layers = static_cast<uint32_t>(seen.shape.num_layers);
  // About a quarter and a half of the way up.
  data->class_layers = {layers * 8 / 30, layers * 16 / 30};
  const Eigen::Index d = seen.shape.d_model;
  const Eigen::Index latent = 2 * seen.shape.kv_dim;
  const Eigen::Index width = d + 2 * latent;
  data->class_weights.assign(static_cast<size_t>(width), 0.0f);
  data->class_bias = 0.0f;
  const Eigen::Index all = kNuisances + width;
  Eigen::MatrixXd gram = Eigen::MatrixXd::Zero(all, all);
  Eigen::VectorXd moment = Eigen::VectorXd::Zero(all);
  Eigen::VectorXd mean_inputs = Eigen::VectorXd::Zero(width);
  double sum = 0.0, count = 0.0;
  Eigen::VectorXd scale = Eigen::VectorXd::Ones(width);
  scale.tail(2 * latent).setConstant(static_cast<double>(kLatentScale));
  // Two passes, since the target's mean is taken off.
  for (const bool fits : {false, true}) {
    for (size_t g = 0; g < seen.gradient_windows.size(); ++g) {
      const size_t window = seen.gradient_windows[g];
      const auto n = static_cast<Eigen::Index>(seen.windows[window].size());
      // Nothing outside reads the last block, so that it says nothing.
      const Eigen::Index rows = n - kSinkTokens - kBlockTokens;
      if (rows <= 0) continue;
      Eigen::VectorXd y(rows);
      for (Eigen::Index r = 0; r < rows; ++r) {
        y[r] = std::log(
            seen.sensitivity[g][static_cast<size_t>(r + kSinkTokens)] + 1e-12);
      }
      if (!fits) {
        sum += y.sum();
        count += static_cast<double>(rows);
        continue;
      }
      const std::vector<float> unit =
          UnitEmbeddings(model, kernels, seen.windows[window]);
      Eigen::MatrixXd z(rows, all);
      for (Eigen::Index r = 0; r < rows; ++r) {
        const auto at = static_cast<double>(r + kSinkTokens);
        z(r, 0) = 1.0;
        z(r, 1) = std::log(static_cast<double>(n) - at);
        z(r, 2) = std::log(1.0 + at);
      }
      z.rightCols(width) = Inputs(*data, seen, kernels, window, unit)
                               .middleRows(kSinkTokens, rows) *
                           scale.asDiagonal();
      mean_inputs += z.rightCols(width).colwise().sum().transpose();
      gram.noalias() += z.transpose() * z;
      moment.noalias() += z.transpose() * (y.array() - sum / count).matrix();
    }
  }
  if (!(count > 0.0)) return;
  // As much as 30 rows weigh, and a share for channels that are seldom large.
  const double ridge =
      30.0 * (gram.trace() / static_cast<double>(all) / count + 0.3);
  gram.diagonal().array() += ridge;
  const Eigen::VectorXd solved = gram.llt().solve(moment);
  const Eigen::VectorXd weights = solved.tail(width);
  const double mean = weights.dot(mean_inputs / count);
  // A class is half a power of two of the step, and the step falls by
  // sensitivity^(-step_power / 2).
  const double factor = -step_power / std::numbers::ln2;
  for (Eigen::Index i = 0; i < width; ++i) {
    data->class_weights[static_cast<size_t>(i)] =
        static_cast<float>(weights[i] * scale[i] * factor);
  }
  data->class_bias = static_cast<float>(-mean * factor);
}

std::vector<uint32_t> TokenClasses(const TransformData& data,
                                   const Observations& seen,
                                   const Kernels& kernels, size_t window,
                                   const std::vector<float>& unit) {
  const Eigen::MatrixXd inputs = Inputs(data, seen, kernels, window, unit);
  const Eigen::VectorXd p =
      (inputs * Eigen::Map<const Eigen::VectorXf>(
                    data.class_weights.data(),
                    static_cast<Eigen::Index>(data.class_weights.size()))
                    .cast<double>())
          .array() +
      static_cast<double>(data.class_bias);
  std::vector<uint32_t> classes;
  constexpr double kMost = kNumSteps / 2;
  for (double v : p) {
    classes.push_back(static_cast<uint32_t>(
        static_cast<int>(std::clamp(std::floor(v + 0.5), -kMost, kMost)) +
        kNumSteps / 2));
  }
  return classes;
}

}  // namespace xcache
