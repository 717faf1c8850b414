// Long, because a group's matrices, statistics and what the next group sees of
// them are one loop over the same windows.
#include "engine/calibration/fit.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/calibration/metric.h"
#include "engine/calibration/token_classes.h"
#include "engine/philox.h"

namespace xcache {
namespace {

constexpr size_t kNumLevels = kLevelNames.size();
// The level whose closed loop prediction and transform are fitted to.
constexpr size_t kFitLevel = 1;
// The codec's own rounding (transform_codec.cc).
constexpr float kRounding = 0.48f;
// What is added to mean magnitudes: they are never known to be zero.
constexpr double kLeastExpectation = 0.01;
// What a statistic of few samples is drawn to the common one with.
constexpr double kPseudoCount = 50.0;
// Ridges of the prediction: of the embedding, in mean squares of a feature; of
// what came back, in the variance of a rounding error.
constexpr double kEmbeddingRidge = 0.003;
constexpr double kLatentRidge = 0.3;

using Floats = std::vector<float>;

// Eigenvalues, rising, and vectors of a symmetric matrix. FP32: half the time
// of FP64, and the least variance that is kept is far above what it rounds.
struct Axes {
  explicit Axes(const Eigen::MatrixXd& m) {
    // Of any scale: squares of tiny numbers would be none.
    const double scale = std::max(m.diagonal().maxCoeff(), 1e-300);
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXf> solver(
        ((m + m.transpose()) * (0.5 / scale)).cast<float>());
    values = solver.eigenvalues().cast<double>() * scale;
    vectors = solver.eigenvectors().cast<double>();
  }
  Eigen::VectorXd values;
  Eigen::MatrixXd vectors;
};

// What is kept of a window from group to group.
struct WindowState {
  Floats unit;                    // [n, d]
  std::vector<uint32_t> classes;  // [n]
  // Of each level, the last latents of the group before as they came back, in
  // the metric, [n, known]; empty where the level does not see this window.
  std::array<Floats, kNumLevels> known;
};

class Fitter {
 public:
  Fitter(const Model& model, const Observations& seen,
         const FitOptions& options, const Products& products)
      : model_(model),
        seen_(seen),
        options_(options),
        products_(products),
        kernels_(products.kernels()),
        latent_(2 * seen.shape.kv_dim),
        d_(seen.shape.d_model),
        metric_(MakeMetric(model, seen, options.plain_share)),
        histogram_(kNumContexts * kHistogram, 0.0) {
    data_.shape = seen.shape;
  }

  absl::StatusOr<TransformData> Run(const ProgressFn& progress) {
    FitTokenClasses(model_, seen_, kernels_, options_.step_power, &data_);
    for (size_t w = 0; w < seen_.windows.size(); ++w) {
      WindowState& state = states_.emplace_back();
      state.unit = UnitEmbeddings(model_, kernels_, seen_.windows[w]);
      state.classes = TokenClasses(data_, seen_, kernels_, w, state.unit);
    }
    for (double step : options_.steps) {
      data_.levels.emplace_back().step = static_cast<float>(step);
    }
    const auto layers = static_cast<uint32_t>(seen_.shape.num_layers);
    const uint32_t most =
        std::clamp(kMostFitWidth / static_cast<uint32_t>(latent_), 1u,
                   options_.group_layers);
    for (uint32_t first = 1; first < layers; first += most) {
      if (progress) {
        progress("fitting",
                 static_cast<double>(first) / static_cast<double>(layers));
      }
      TransformGroup group;
      group.first_layer = first;
      group.num_layers = std::min(most, layers - first);
      data_.groups.push_back(std::move(group));
      FitGroup();
    }
    FitTables();
    StoreLayers();
    for (const TransformGroup& group : data_.groups) {
      for (const HalfRows* m : {&group.predict, &group.encode, &group.decode}) {
        for (float scale : m->scales) {
          if (!std::isfinite(scale)) {
            return absl::InvalidArgumentError(
                "cannot calibrate: the model's rows or gradients are not "
                "finite");
          }
        }
      }
    }
    return std::move(data_);
  }

 private:
  // Magnitudes that are counted one by one.
  static constexpr size_t kHistogram = 128;

  // The group at hand, in the metric, before it is rounded to halves.
  struct Fitted {
    Eigen::MatrixXd predict;     // [features, rank], of whitened features
    Eigen::MatrixXd directions;  // [width, rank] V
    Eigen::MatrixXd axes;        // [width, channels] U
    Eigen::VectorXd variances;   // [channels]
  };

  // Window `w` serves the statistics of all levels.
  bool Counts(size_t w) const { return w % options_.statistics_stride == 0; }
  bool Follows(size_t level, size_t w) const {
    return level == kFitLevel || Counts(w);
  }
  int64_t Rows(size_t w) const {
    return static_cast<int64_t>(seen_.windows[w].size());
  }
  const TransformGroup& group() const { return data_.groups.back(); }
  int64_t width() const { return group().num_layers * latent_; }
  // Columns of features that came back of the group before.
  int64_t known() const {
    if (data_.groups.size() == 1) return 0;
    const TransformGroup& before = data_.groups[data_.groups.size() - 2];
    return std::min(kFeatureLayers, before.num_layers) * latent_;
  }
  int64_t features() const { return d_ + known() + 1; }

  // Rows from the sinks on.
  static Floats WithoutSinks(const Floats& rows, int64_t n) {
    const auto skip = static_cast<ptrdiff_t>(
        rows.size() / static_cast<size_t>(n) * kSinkTokens);
    return {rows.begin() + skip, rows.end()};
  }

  // The group's latents of a window in the metric, [n, width].
  Floats Whitened(size_t w) const {
    const int64_t n = Rows(w);
    Floats y(static_cast<size_t>(n * latent_));
    Floats out(static_cast<size_t>(n * width()));
    for (uint32_t j = 0; j < group().num_layers; ++j) {
      seen_.Latents(kernels_, w, static_cast<int>(group().first_layer + j),
                    y.data());
      products_.Multiply(y.data(), latent_, n, roots_[j],
                         out.data() + j * latent_, width());
    }
    return out;
  }

  Floats Features(size_t w, size_t level) const {
    const int64_t n = Rows(w);
    Floats out(static_cast<size_t>(n * features()));
    const WindowState& state = states_[w];
    for (int64_t r = 0; r < n; ++r) {
      float* row = &out[static_cast<size_t>(r * features())];
      row = std::copy_n(&state.unit[static_cast<size_t>(r * d_)], d_, row);
      if (known() > 0) {
        row = std::copy_n(&state.known[level][static_cast<size_t>(r * known())],
                          known(), row);
      }
      *row = 1.0f;
    }
    return out;
  }

  void FitGroup() {
    roots_.clear();
    for (uint32_t j = 0; j < group().num_layers; ++j) {
      roots_.push_back(PackEigen(metric_.root[group().first_layer + j]));
    }
    Eigen::MatrixXd ff, fx, xx;
    double rows = 0.0;
    for (size_t w = 0; w < states_.size(); ++w) {
      const int64_t n = Rows(w);
      const Floats x = WithoutSinks(Whitened(w), n);
      const Floats f = WithoutSinks(Features(w, kFitLevel), n);
      products_.AddProduct(f, f, n - kSinkTokens, &ff);
      products_.AddProduct(f, x, n - kSinkTokens, &fx);
      products_.AddProduct(x, x, n - kSinkTokens, &xx);
      rows += static_cast<double>(n - kSinkTokens);
    }
    const Fitted fitted = FitMatrices(ff / rows, fx / rows, xx / rows);
    Store(fitted);
    for (TransformLevel& level : data_.levels) {
      TransformLevel::Group& of = level.groups.emplace_back();
      const double least = options_.least_variance *
                           static_cast<double>(level.step) *
                           static_cast<double>(level.step);
      of.channels = static_cast<uint32_t>(std::max<Eigen::Index>(
          1, (fitted.variances.array() > least).count()));
    }
    for (size_t level = 0; level < kNumLevels; ++level) FitLevel(level, fitted);
  }

  Fitted FitMatrices(const Eigen::MatrixXd& ff, const Eigen::MatrixXd& fx,
                     const Eigen::MatrixXd& xx) {
    Fitted out;
    const double step = options_.steps[kFitLevel];
    Eigen::MatrixXd regular = ff;
    const double embedding = kEmbeddingRidge *
                             ff.topLeftCorner(d_, d_).trace() /
                             static_cast<double>(d_);
    regular.diagonal().head(d_).array() += embedding;
    regular.diagonal().segment(d_, known()).array() +=
        kLatentRidge * step * step / 12.0;
    regular.diagonal()[d_ + known()] += 1e-6;
    const Eigen::MatrixXd b = regular.llt().solve(fx);
    // The directions in which the prediction varies most: of B^T ff B = T^T T
    // by the smaller T T^T.
    const Eigen::LLT<Eigen::MatrixXd> root(
        ff + 1e-9 * ff.trace() / static_cast<double>(ff.rows()) *
                 Eigen::MatrixXd::Identity(ff.rows(), ff.rows()));
    const Eigen::MatrixXd t = root.matrixU() * b;
    const bool wide = t.cols() > t.rows();
    const Eigen::MatrixXd small = wide ? Eigen::MatrixXd(t * t.transpose())
                                       : Eigen::MatrixXd(t.transpose() * t);
    const Axes main(small);
    const auto rank = static_cast<Eigen::Index>(std::min<int64_t>(
        {static_cast<int64_t>(std::min(options_.rank, kMostRank)), width(),
         features(),
         std::max<int64_t>(
             1,
             (main.values.array() > 1e-6 * main.values.maxCoeff()).count())}));
    Eigen::MatrixXd v = main.vectors.rightCols(rank).rowwise().reverse();
    if (wide) {
      v = t.transpose() * v;
      for (Eigen::Index i = 0; i < rank; ++i) v.col(i).normalize();
    }
    FixSigns(&v);
    out.directions = v;
    out.predict = b * v;
    // xx - (fx^T P) V^T - V (P^T fx) + V (P^T ff P) V^T
    const Eigen::MatrixXd cross =
        (fx.transpose() * out.predict) * v.transpose();
    const Eigen::MatrixXd square = out.predict.transpose() * (ff * out.predict);
    const Eigen::MatrixXd left =
        xx - cross - cross.transpose() + (v * square) * v.transpose();
    const Axes axes(left);
    const double least =
        options_.least_variance * options_.steps[0] * options_.steps[0];
    const auto channels = std::clamp<Eigen::Index>(
        (axes.values.array() > least).count(), 1,
        static_cast<Eigen::Index>(
            MostChannels(static_cast<uint64_t>(width()))));
    out.axes = axes.vectors.rightCols(channels).rowwise().reverse();
    out.variances = axes.values.tail(channels).reverse();
    FixSigns(&out.axes);
    return out;
  }

  // Of an eigenvector only the line is determined: its largest component (the
  // first of equal ones) becomes positive.
  static void FixSigns(Eigen::MatrixXd* columns) {
    for (Eigen::Index c = 0; c < columns->cols(); ++c) {
      Eigen::Index largest = 0;
      columns->col(c).cwiseAbs().maxCoeff(&largest);
      if ((*columns)(largest, c) < 0.0) columns->col(c) *= -1.0;
    }
  }

  // The metric is folded in, so that the codec sees latents as they are.
  void Store(const Fitted& fitted) {
    TransformGroup& out = data_.groups.back();
    const Eigen::Index rank = fitted.directions.cols();
    const Eigen::Index channels = fitted.axes.cols();
    out.rank = static_cast<uint32_t>(rank);
    out.channels = static_cast<uint32_t>(channels);
    using RowMajor =
        Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    RowMajor predict = fitted.predict.transpose();  // [rank, features]
    if (known() > 0) {
      const TransformGroup& before = data_.groups[data_.groups.size() - 2];
      const uint32_t kept = std::min(kFeatureLayers, before.num_layers);
      for (uint32_t j = 0; j < kept; ++j) {
        const uint32_t layer =
            before.first_layer + before.num_layers - kept + j;
        auto part = predict.middleCols(d_ + j * latent_, latent_);
        part = (part * metric_.root[layer]).eval();
      }
    }
    RowMajor encode(channels, width() + rank), decode(rank + channels, width());
    for (uint32_t j = 0; j < group().num_layers; ++j) {
      const size_t layer = group().first_layer + j;
      const Eigen::Index at = j * latent_;
      encode.middleCols(at, latent_) =
          fitted.axes.middleRows(at, latent_).transpose() * metric_.root[layer];
      decode.block(0, at, rank, latent_) =
          fitted.directions.middleRows(at, latent_).transpose() *
          metric_.inverse[layer];
      decode.block(rank, at, channels, latent_) =
          fitted.axes.middleRows(at, latent_).transpose() *
          metric_.inverse[layer];
    }
    encode.rightCols(rank) = fitted.axes.transpose() * fitted.directions;
    const auto halves = [](const RowMajor& m) {
      return MakeHalfRows(static_cast<uint32_t>(m.rows()),
                          static_cast<uint32_t>(m.cols()), m.data());
    };
    out.predict = halves(predict);
    out.encode = halves(encode);
    out.decode = halves(decode);
  }

  // A window's coefficients, and what they are added to.
  struct Coded {
    Floats predicted;     // [n, rank]
    Floats coefficients;  // [n, channels]
  };

  void FitLevel(size_t l, const Fitted& fitted) {
    TransformLevel::Group& of = data_.levels[l].groups.back();
    const auto channels = static_cast<Eigen::Index>(of.channels);
    const Eigen::Index rank = fitted.directions.cols();
    const Eigen::MatrixXd axes = fitted.axes.leftCols(channels);
    const PackedFloat predict = PackEigen(fitted.predict);
    // [x | z] to coefficients.
    Eigen::MatrixXd encode(width() + rank, channels);
    encode.topRows(width()) = axes;
    encode.bottomRows(rank) = -fitted.directions.transpose() * axes;
    const PackedFloat packed_encode = PackEigen(encode);
    // [z | q] to what the next group is predicted from.
    const Eigen::Index kept =
        std::min(kFeatureLayers, group().num_layers) * latent_;
    Eigen::MatrixXd decode(rank + channels, width());
    decode.topRows(rank) = fitted.directions.transpose();
    decode.bottomRows(channels) = axes.transpose();
    const PackedFloat packed_decode = PackEigen(decode.rightCols(kept));
    const PackedFloat packed_whole = PackEigen(decode);
    std::vector<double> costs(group().num_layers, 0.0);
    double cost_rows = 0.0;

    const auto code = [&](size_t w) {
      const int64_t n = Rows(w);
      Coded out;
      out.predicted.resize(static_cast<size_t>(n * rank));
      const Floats f = Features(w, l);
      products_.Multiply(f.data(), features(), n, predict, out.predicted.data(),
                         rank);
      const Floats x = Whitened(w);
      Floats inputs(static_cast<size_t>(n * (width() + rank)));
      for (int64_t r = 0; r < n; ++r) {
        float* row = &inputs[static_cast<size_t>(r * (width() + rank))];
        row = std::copy_n(&x[static_cast<size_t>(r * width())], width(), row);
        std::copy_n(&out.predicted[static_cast<size_t>(r * rank)], rank, row);
      }
      out.coefficients.resize(static_cast<size_t>(n * channels));
      products_.Multiply(inputs.data(), width() + rank, n, packed_encode,
                         out.coefficients.data(), channels);
      return out;
    };
    std::vector<size_t> counted;
    std::vector<Coded> coded;
    for (size_t w = 0; w < states_.size(); ++w) {
      if (!Counts(w)) continue;
      counted.push_back(w);
      coded.push_back(code(w));
    }
    FitExpectations(l, counted, coded);
    FitShifts(l, counted, coded);
    for (size_t i = 0; i < counted.size(); ++i) {
      CountSymbols(l, counted[i], coded[i]);
    }
    for (size_t w = 0, i = 0; w < states_.size(); ++w) {
      if (!Follows(l, w)) continue;
      const int64_t n = Rows(w);
      const Coded of_window = Counts(w) ? std::move(coded[i++]) : code(w);
      Floats inputs(static_cast<size_t>(n * (rank + channels)));
      ForRows(n, [&](int64_t r) {
        float* row = &inputs[static_cast<size_t>(r * (rank + channels))];
        row = std::copy_n(&of_window.predicted[static_cast<size_t>(r * rank)],
                          rank, row);
        for (Eigen::Index c = 0; c < channels; ++c) {
          row[c] = Restored(l, w, r, c, of_window);
        }
      });
      Floats& next = next_known_[l].emplace_back(static_cast<size_t>(n * kept));
      if (!Counts(w)) {
        products_.Multiply(inputs.data(), rank + channels, n, packed_decode,
                           next.data(), kept);
        continue;
      }
      Floats back(static_cast<size_t>(n * width()));
      products_.Multiply(inputs.data(), rank + channels, n, packed_whole,
                         back.data(), width());
      for (int64_t r = 0; r < n; ++r) {
        std::copy_n(&back[static_cast<size_t>((r + 1) * width() - kept)], kept,
                    &next[static_cast<size_t>(r * kept)]);
      }
      AddCosts(l, w, back, &costs);
      cost_rows += static_cast<double>(n - kSinkTokens);
    }
    for (double cost : costs) {
      data_.levels[l].errors.push_back(static_cast<float>(cost / cost_rows));
    }
    // Only now: levels of this group have read what came back before it.
    for (size_t w = 0, i = 0; w < states_.size(); ++w) {
      if (Follows(l, w)) states_[w].known[l] = std::move(next_known_[l][i++]);
    }
    next_known_[l].clear();
  }

  // Adds what errors of a window's rows cost, of each layer, in squares of the
  // row's step.
  void AddCosts(size_t l, size_t w, const Floats& back,
                std::vector<double>* costs) const {
    const Floats x = Whitened(w);
    products_.pool().ParallelFor(
        static_cast<int64_t>(costs->size()), [&](int64_t layer, int) {
          double sum = 0.0;
          for (int64_t r = kSinkTokens; r < Rows(w); ++r) {
            const auto at = static_cast<size_t>(r * width() + layer * latent_);
            double cost = 0.0;
            for (size_t i = at; i < at + static_cast<size_t>(latent_); ++i) {
              const double error =
                  static_cast<double>(x[i]) - static_cast<double>(back[i]);
              cost += error * error;
            }
            const double step =
                Step(l, states_[w].classes[static_cast<size_t>(r)]);
            sum += cost / (step * step);
          }
          (*costs)[static_cast<size_t>(layer)] += sum;
        });
  }

  // What the codec tells rows by that err too much.
  void StoreLayers() {
    for (size_t layer = 1; layer < metric_.root.size(); ++layer) {
      const Eigen::MatrixXd& root = metric_.root[layer];
      using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic,
                                     Eigen::RowMajor>;
      RowMajor signs(kMeasures, latent_);
      for (Eigen::Index m = 0; m < signs.rows(); ++m) {
        for (Eigen::Index i = 0; i < latent_; ++i) {
          const double share =
              PhiloxUniform(layer, static_cast<uint64_t>(m * latent_ + i));
          signs(m, i) = share < 0.5 ? -1.0 : 1.0;
        }
      }
      const RowMajor measure =
          signs * root / std::sqrt(static_cast<double>(kMeasures));
      TransformLayer& out = data_.layers.emplace_back();
      out.measure = MakeHalfRows(kMeasures, static_cast<uint32_t>(latent_),
                                 measure.data());
      for (Eigen::Index i = 0; i < latent_; ++i) {
        out.scales.push_back(static_cast<float>(1.0 / root.row(i).norm()));
      }
    }
  }

  template <typename Fn>
  void ForRows(int64_t n, const Fn& fn) const {
    products_.pool().ParallelFor(n, [&](int64_t r, int) { fn(r); });
  }

  double Step(size_t l, uint32_t step_class) const {
    return options_.steps[l] *
           std::exp2(static_cast<double>(step_class) / 2.0 - 1.0);
  }
  static float Magnitude(float x) {
    return std::floor(std::abs(x) + kRounding);
  }

  float Restored(size_t l, size_t w, int64_t r, Eigen::Index c,
                 const Coded& coded) const {
    const TransformLevel::Group& of = data_.levels[l].groups.back();
    const uint32_t step_class = states_[w].classes[static_cast<size_t>(r)];
    const auto step = static_cast<float>(Step(l, step_class));
    const float x =
        coded.coefficients[static_cast<size_t>(r * of.channels + c)];
    const float q = Magnitude(x / step);
    if (q == 0.0f) return 0.0f;
    const auto level = static_cast<size_t>(MagnitudeOf(
        of.expectations[static_cast<size_t>(c) * kNumSteps + step_class]));
    const size_t by = std::min(static_cast<size_t>(q), kNumShifts) - 1;
    const float back = (q + of.shifts[by][level]) * step;
    return x < 0.0f ? -back : back;
  }

  // Mean magnitudes of each channel, of all tokens at each class's step.
  void FitExpectations(size_t l, const std::vector<size_t>& windows,
                       const std::vector<Coded>& coded) {
    TransformLevel::Group& of = data_.levels[l].groups.back();
    const size_t channels = of.channels;
    of.expectations.assign(channels * kNumSteps, 0);
    products_.pool().ParallelFor(
        static_cast<int64_t>(channels), [&](int64_t channel, int) {
          const auto c = static_cast<size_t>(channel);
          for (uint32_t s = 0; s < kNumSteps; ++s) {
            const auto inverse = static_cast<float>(1.0 / Step(l, s));
            double sum = 0.0, count = 0.0;
            for (size_t i = 0; i < windows.size(); ++i) {
              const auto n = static_cast<size_t>(Rows(windows[i]));
              for (size_t r = kSinkTokens; r < n; ++r) {
                sum += static_cast<double>(Magnitude(
                    coded[i].coefficients[r * channels + c] * inverse));
              }
              count += static_cast<double>(n - kSinkTokens);
            }
            const double mean =
                std::min(sum / count + kLeastExpectation, 65536.0);
            of.expectations[c * kNumSteps + s] = static_cast<uint32_t>(
                mean * static_cast<double>(kExpectationUnit) + 0.5);
          }
        });
  }

  // Where values lie within their intervals, on average.
  void FitShifts(size_t l, const std::vector<size_t>& windows,
                 const std::vector<Coded>& coded) {
    TransformLevel::Group& of = data_.levels[l].groups.back();
    std::array<std::array<double, kNumMagnitudes>, kNumShifts> sums{}, counts{};
    for (size_t i = 0; i < windows.size(); ++i) {
      const auto n = static_cast<size_t>(Rows(windows[i]));
      for (size_t r = kSinkTokens; r < n; ++r) {
        const uint32_t s = states_[windows[i]].classes[r];
        const auto inverse = static_cast<float>(1.0 / Step(l, s));
        for (size_t c = 0; c < of.channels; ++c) {
          const float x = coded[i].coefficients[r * of.channels + c] * inverse;
          const float q = Magnitude(x);
          if (q == 0.0f) continue;
          const auto level = static_cast<size_t>(
              MagnitudeOf(of.expectations[c * kNumSteps + s]));
          const size_t by = std::min(static_cast<size_t>(q), kNumShifts) - 1;
          sums[by][level] += static_cast<double>(std::abs(x) - q);
          counts[by][level] += 1.0;
        }
      }
    }
    for (size_t by = 0; by < kNumShifts; ++by) {
      double sum = 0.0, count = 1e-9;
      for (size_t m = 0; m < kNumMagnitudes; ++m) {
        sum += sums[by][m];
        count += counts[by][m];
      }
      for (size_t m = 0; m < kNumMagnitudes; ++m) {
        of.shifts[by][m] =
            static_cast<float>((sums[by][m] + kPseudoCount * sum / count) /
                               (counts[by][m] + kPseudoCount));
      }
    }
  }

  // Counts magnitudes in their contexts, which are the codec's own.
  void CountSymbols(size_t l, size_t w, const Coded& coded) {
    const TransformLevel::Group& of = data_.levels[l].groups.back();
    const ContextModel model(of.expectations);
    const WindowState& state = states_[w];
    std::vector<int16_t> symbols(kChunkChannels * kRansLanes);
    std::array<uint32_t, kRansLanes> classes;
    for (size_t first = 0; first < state.classes.size();
         first += kBlockTokens) {
      for (size_t lane = 0; lane < kRansLanes; ++lane) {
        classes[lane] = first + lane < kSinkTokens
                            ? kUncodedClass
                            : state.classes[first + lane];
      }
      ContextModel::Walk walk(model, classes.data());
      for (int chunk = 0; chunk < model.num_chunks(); ++chunk) {
        const auto begin = static_cast<size_t>(chunk) * kChunkChannels;
        const auto count = static_cast<size_t>(model.chunk_channels(chunk));
        for (size_t lane = 0; lane < kRansLanes; ++lane) {
          if (classes[lane] == kUncodedClass) continue;
          const auto inverse = static_cast<float>(1.0 / Step(l, classes[lane]));
          const float* x = &coded.coefficients[(first + lane) * of.channels];
          for (size_t c = 0; c < count; ++c) {
            const float q =
                std::min(Magnitude(x[begin + c] * inverse), 32767.0f);
            symbols[c * kRansLanes + lane] = static_cast<int16_t>(q);
            const size_t context =
                model.tables(chunk)[c * kRansClasses + classes[lane]] +
                walk.offsets()[lane];
            histogram_[context * kHistogram +
                       std::min(static_cast<size_t>(q), kHistogram - 1)] += 1.0;
          }
        }
        walk.Advance(symbols.data());
      }
    }
  }

  void FitTables() {
    for (size_t context = 0; context < kNumContexts; ++context) {
      const size_t magnitude = context % kNumMagnitudes;
      // Of all activities together, and a little of what a table that nothing
      // was counted for would look like.
      std::vector<double> all(kHistogram, 0.0), counts(kHistogram);
      double sum = 0.0;
      const double typical =
          std::exp2(-6.5 + 9.0 / 22.0 * (static_cast<double>(magnitude) - 0.5));
      for (size_t v = 0; v < kHistogram; ++v) {
        for (size_t a = 0; a < kNumActivities; ++a) {
          all[v] +=
              histogram_[(a * kNumMagnitudes + magnitude) * kHistogram + v];
        }
        all[v] += std::pow(typical / (1.0 + typical), static_cast<double>(v)) /
                  (1.0 + typical);
        sum += all[v];
      }
      for (size_t v = 0; v < kHistogram; ++v) {
        counts[v] =
            histogram_[context * kHistogram + v] + kPseudoCount * all[v] / sum;
      }
      data_.tables.push_back(FrequenciesOf(counts));
    }
    std::array<double, kNumSteps> steps{};
    for (const WindowState& state : states_) {
      for (uint32_t s : state.classes) steps[s] += 1.0;
    }
    double all = 0.0;
    for (double& n : steps) all += n += 1.0;
    SymbolFrequencies table;
    uint32_t left = kRansTotal;
    table.slots.resize(kNumSteps / 2 + 1);
    for (size_t v = kNumSteps / 2; v > 0; --v) {
      const double share =
          (steps[kNumSteps / 2 - v] + steps[kNumSteps / 2 + v]) / 2.0 / all;
      const auto slots = static_cast<uint32_t>(
          std::clamp(std::floor(share * kRansTotal), 1.0, 1000.0));
      table.slots[v] = static_cast<uint16_t>(slots);
      left -= 2 * slots;
    }
    table.slots[0] = static_cast<uint16_t>(left);
    data_.tables.push_back(std::move(table));
  }

  const Model& model_;
  const Observations& seen_;
  const FitOptions& options_;
  const Products& products_;
  const Kernels& kernels_;
  const int64_t latent_;
  const int64_t d_;
  const Metric metric_;
  TransformData data_;
  std::vector<WindowState> states_;
  std::vector<PackedFloat> roots_;  // of the group's layers
  std::array<std::vector<Floats>, kNumLevels> next_known_;
  std::vector<double> histogram_;  // [contexts][kHistogram]
};

}  // namespace

absl::StatusOr<TransformData> FitTransform(const Model& model,
                                           const Observations& seen,
                                           const FitOptions& options,
                                           const Products& products,
                                           const ProgressFn& progress) {
  if (seen.windows.empty() || seen.gradient_windows.empty()) {
    return absl::InvalidArgumentError(
        "cannot calibrate: expected at least one window, with gradients");
  }
  if (options.group_layers < 1 || options.group_layers > kMostGroupLayers) {
    return absl::InvalidArgumentError(
        absl::StrCat("layers of a group: expected 1 to ", kMostGroupLayers,
                     ", found ", options.group_layers));
  }
  return Fitter(model, seen, options, products).Run(progress);
}

}  // namespace xcache
