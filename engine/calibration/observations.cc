#include "engine/calibration/observations.h"

#include <algorithm>
#include <utility>

#include "engine/philox.h"

namespace xcache {
namespace {

// Rows of a window that count.
std::vector<float> Counted(const float* rows, int64_t n, int64_t width) {
  return {rows + kSinkTokens * width, rows + n * width};
}

// The token at which the running sum of `p` passes a random share of it.
TokenId Sample(std::span<const float> p, double share) {
  double sum = 0.0;
  for (float v : p) sum += static_cast<double>(v);
  double left = share * sum;
  for (size_t i = 0; i < p.size(); ++i) {
    left -= static_cast<double>(p[i]);
    if (left < 0.0) return static_cast<TokenId>(i);
  }
  return static_cast<TokenId>(p.size() - 1);
}

}  // namespace

void Observations::Latents(const Kernels& kernels, size_t window, int layer,
                           float* out) const {
  const size_t n =
      windows[window].size() * 2 * static_cast<size_t>(shape.kv_dim);
  kernels.from_f16(&latents[window][static_cast<size_t>(layer - 1) * n],
                   static_cast<int>(n), out);
}

Observations Observe(FloatModel& model, const HyperParams& hparams,
                     const Products& products,
                     std::vector<std::vector<TokenId>> windows,
                     size_t num_gradients, uint64_t seed,
                     const ProgressFn& progress) {
  const Kernels& kernels = products.kernels();
  Observations out;
  out.shape = {hparams.num_layers, hparams.d_model, hparams.kv_dim()};
  out.windows = std::move(windows);
  const auto layers = static_cast<size_t>(hparams.num_layers);
  const int64_t latent = 2 * hparams.kv_dim();
  const int64_t q_dim = int64_t{hparams.n_heads} * hparams.head_dim;
  out.covariance.assign(layers, Eigen::MatrixXd::Zero(latent, latent));
  out.fisher.assign(layers, Eigen::MatrixXd::Zero(latent, latent));
  out.query_squares.assign(layers, Eigen::VectorXd::Zero(q_dim));
  std::vector<Eigen::VectorXd> mean(layers, Eigen::VectorXd::Zero(latent));
  num_gradients = std::min(num_gradients, out.windows.size());
  for (size_t i = 0; i < num_gradients; ++i) {
    out.gradient_windows.push_back(i * out.windows.size() / num_gradients);
  }
  // A gradient takes about as long as four forward passes.
  const auto report = [&](size_t forward, size_t gradients) {
    if (!progress) return;
    progress("observing",
             static_cast<double>(forward + 4 * gradients) /
                 static_cast<double>(out.windows.size() + 4 * num_gradients));
  };

  double rows = 0.0;
  for (size_t w = 0; w < out.windows.size(); ++w) {
    report(w, 0);
    const auto n = static_cast<int64_t>(out.windows[w].size());
    std::vector<uint16_t>& kept = out.latents.emplace_back(
        (layers - 1) * static_cast<size_t>(n * latent));
    model.Forward(
        out.windows[w], [&](int layer, const FloatModel::LayerRows& in) {
          if (layer == 0) return;
          const auto at = static_cast<size_t>(layer);
          kernels.to_f16(in.kv, static_cast<int>(n * latent),
                         &kept[(at - 1) * static_cast<size_t>(n * latent)]);
          const std::vector<float> y = Counted(in.kv, n, latent);
          products.AddProduct(y, y, n - kSinkTokens, &out.covariance[at]);
          for (int64_t r = kSinkTokens; r < n; ++r) {
            mean[at] +=
                Eigen::Map<const Eigen::VectorXf>(in.kv + r * latent, latent)
                    .cast<double>();
            out.query_squares[at] +=
                Eigen::Map<const Eigen::VectorXf>(in.q + r * q_dim, q_dim)
                    .cast<double>()
                    .cwiseAbs2();
          }
        });
    rows += static_cast<double>(n - kSinkTokens);
  }
  for (size_t i = 0; i < layers; ++i) {
    mean[i] /= rows;
    out.covariance[i] =
        out.covariance[i] / rows - mean[i] * mean[i].transpose();
    out.query_squares[i] /= rows;
  }

  std::vector<PackedFloat> covariances;
  for (const Eigen::MatrixXd& c : out.covariance) {
    covariances.push_back(PackEigen(c));
  }
  double gradient_rows = 0.0;
  for (size_t i = 0; i < out.gradient_windows.size(); ++i) {
    report(out.windows.size(), i);
    const std::vector<TokenId>& tokens = out.windows[out.gradient_windows[i]];
    const auto n = static_cast<int64_t>(tokens.size());
    std::vector<double>& sums =
        out.sensitivity.emplace_back(static_cast<size_t>(n), 0.0);
    model.Gradients(
        tokens,
        [&](int row, std::span<const float> p) {
          return Sample(
              p, PhiloxUniform(seed, i << 32 | static_cast<uint64_t>(row)));
        },
        nullptr,
        [&](int layer, const float* gradient) {
          if (layer == 0) return;
          const auto at = static_cast<size_t>(layer);
          const std::vector<float> g = Counted(gradient, n, latent);
          products.AddProduct(g, g, n - kSinkTokens, &out.fisher[at]);
          std::vector<float> turned(g.size());
          products.Multiply(g.data(), latent, n - kSinkTokens, covariances[at],
                            turned.data(), latent);
          for (int64_t r = kSinkTokens; r < n; ++r) {
            const int64_t first = (r - kSinkTokens) * latent;
            double s = 0.0;
            for (int64_t e = first; e < first + latent; ++e) {
              s += static_cast<double>(g[static_cast<size_t>(e)]) *
                   static_cast<double>(turned[static_cast<size_t>(e)]);
            }
            sums[static_cast<size_t>(r)] += s;
          }
        });
    gradient_rows += static_cast<double>(n - kSinkTokens);
  }
  for (Eigen::MatrixXd& f : out.fisher) f /= std::max(gradient_rows, 1.0);
  report(out.windows.size(), num_gradients);
  return out;
}

}  // namespace xcache
