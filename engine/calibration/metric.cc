#include "engine/calibration/metric.h"

#include <algorithm>
#include <cmath>

namespace xcache {
namespace {

// N: how far an error moves what a head adds to the residual stream. Of V
// exactly, by W_o; of K by the scores, q k / sqrt(head_dim), each of which then
// mixes values whose spread is that of V.
Eigen::MatrixXd PlainMetric(const Model& model, const Observations& seen,
                            int layer) {
  const HyperParams& h = model.hparams();
  const Eigen::Index head_dim = h.head_dim;
  const Eigen::Index k = h.kv_dim();
  const TensorView& wo = model.layer(layer).wo;
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> w(
      wo.rows, wo.cols);
  for (int64_t r = 0; r < wo.rows; ++r) {
    DequantizeRow(wo, r, w.data() + r * wo.cols);
  }
  const auto at = static_cast<size_t>(layer);
  Eigen::MatrixXd out = Eigen::MatrixXd::Zero(2 * k, 2 * k);
  for (int head = 0; head < h.n_heads; ++head) {
    const Eigen::Index kv = head / (h.n_heads / h.n_kv_heads) * head_dim;
    const Eigen::MatrixXd wh =
        w.middleCols(head * head_dim, head_dim).cast<double>();
    const Eigen::MatrixXd values = wh.transpose() * wh;
    out.block(k + kv, k + kv, head_dim, head_dim) += values;
    const double spread = values
                              .cwiseProduct(seen.covariance[at].block(
                                  k + kv, k + kv, head_dim, head_dim))
                              .sum();
    const Eigen::VectorXd squares =
        seen.query_squares[at].segment(head * head_dim, head_dim);
    for (Eigen::Index i = 0; i < head_dim; ++i) {
      // RoPE turns the two of a pair into each other.
      Eigen::Index other = i;
      if (i < h.rope_dim) {
        other = h.rope_pairs == RopePairs::kInterleaved
                    ? (i ^ 1)
                    : (i + h.rope_dim / 2) % h.rope_dim;
      }
      out(kv + i, kv + i) += (squares[i] + squares[other]) / 2.0 /
                             static_cast<double>(head_dim) * spread;
    }
  }
  return out;
}

}  // namespace

Metric MakeMetric(const Model& model, const Observations& seen,
                  double plain_share) {
  const Eigen::Index k = seen.shape.kv_dim;
  Metric out;
  out.root.resize(1);
  out.inverse.resize(1);
  for (int layer = 1; layer < seen.shape.num_layers; ++layer) {
    const auto at = static_cast<size_t>(layer);
    const Eigen::MatrixXd& fisher = seen.fisher[at];
    const Eigen::MatrixXd& covariance = seen.covariance[at];
    Eigen::MatrixXd plain = PlainMetric(model, seen, layer);
    for (const Eigen::Index begin : {Eigen::Index{0}, k}) {
      const auto cost = [&](const Eigen::MatrixXd& m) {
        return m.block(begin, begin, k, k)
            .cwiseProduct(covariance.block(begin, begin, k, k))
            .sum();
      };
      const double plain_cost = cost(plain);
      if (plain_cost > 0.0) {
        plain.block(begin, begin, k, k) *= cost(fisher) / plain_cost;
      }
    }
    Eigen::MatrixXd m = (1.0 - plain_share) * fisher + plain_share * plain;
    // A direction of no cost at all would have an inverse without bounds.
    m.diagonal().array() += 1e-6 * m.trace() / static_cast<double>(2 * k);
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(m);
    const double least =
        std::max(1e-12 * solver.eigenvalues().maxCoeff(), 1e-300);
    const Eigen::VectorXd roots =
        solver.eigenvalues().cwiseMax(least).cwiseSqrt();
    const Eigen::MatrixXd& v = solver.eigenvectors();
    out.root.push_back(v * roots.asDiagonal() * v.transpose());
    out.inverse.push_back(v * roots.cwiseInverse().asDiagonal() *
                          v.transpose());
  }
  return out;
}

}  // namespace xcache
