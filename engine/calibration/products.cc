#include "engine/calibration/products.h"

#include <algorithm>

namespace xcache {
namespace {

static_assert(kFloatPanelCols == 64);
constexpr int64_t kTaskRows = 192;
constexpr int kTaskPanels = 8;

}  // namespace

void Products::Multiply(const float* a, int64_t a_stride, int64_t rows,
                        const PackedFloat& b, float* out,
                        int64_t out_stride) const {
  const int64_t row_tasks = (rows + kTaskRows - 1) / kTaskRows;
  const int64_t panel_tasks = (b.num_panels() + kTaskPanels - 1) / kTaskPanels;
  pool_.ParallelFor(row_tasks * panel_tasks, [&](int64_t task, int) {
    const int64_t row = task % row_tasks * kTaskRows;
    const int panel = static_cast<int>(task / row_tasks) * kTaskPanels;
    FloatMatmulArgs args;
    args.a = a + row * a_stride;
    args.a_stride = a_stride;
    args.num_rows = static_cast<int>(std::min(kTaskRows, rows - row));
    args.b = b.view();
    args.out = out + row * out_stride;
    args.out_stride = out_stride;
    kernels_.float_matmul(args, panel,
                          std::min(panel + kTaskPanels, b.num_panels()));
  });
}

void Products::AddProduct(const std::vector<float>& a,
                          const std::vector<float>& b, int64_t rows,
                          Eigen::MatrixXd* sum) const {
  const auto n = static_cast<int64_t>(a.size()) / rows;
  const auto m = static_cast<int64_t>(b.size()) / rows;
  if (sum->size() == 0) sum->setZero(n, m);
  std::vector<float> turned(a.size());
  pool_.ParallelFor((n + 63) / 64, [&](int64_t chunk, int) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = chunk * 64; i < std::min(n, chunk * 64 + 64); ++i) {
        turned[static_cast<size_t>(i * rows + r)] =
            a[static_cast<size_t>(r * n + i)];
      }
    }
  });
  // Shapes are positive, which is all that can be wrong.
  const PackedFloat packed = *PackedFloat::FromMatrix(
      b.data(), static_cast<int>(rows), static_cast<int>(m), m, 1);
  std::vector<float> product(static_cast<size_t>(n * m));
  if (&a == &b) {
    // Symmetric, to the bit: a chunk of rows, from its own panel on.
    pool_.ParallelFor((n + 63) / 64, [&](int64_t chunk, int) {
      FloatMatmulArgs args;
      args.a = turned.data() + chunk * 64 * rows;
      args.a_stride = rows;
      args.num_rows = static_cast<int>(std::min<int64_t>(64, n - chunk * 64));
      args.b = packed.view();
      args.out = product.data() + chunk * 64 * m;
      args.out_stride = m;
      kernels_.float_matmul(args, static_cast<int>(chunk), packed.num_panels());
    });
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = i + 1; j < m; ++j) {
        product[static_cast<size_t>(j * m + i)] =
            product[static_cast<size_t>(i * m + j)];
      }
    }
  } else {
    Multiply(turned.data(), rows, n, packed, product.data(), m);
  }
  // Eigen's matrices lie by columns.
  pool_.ParallelFor((m + 63) / 64, [&](int64_t chunk, int) {
    for (int64_t j = chunk * 64; j < std::min(m, chunk * 64 + 64); ++j) {
      for (int64_t i = 0; i < n; ++i) {
        (*sum)(i, j) +=
            static_cast<double>(product[static_cast<size_t>(i * m + j)]);
      }
    }
  });
}

PackedFloat PackEigen(const Eigen::MatrixXd& b) {
  const Eigen::MatrixXf single = b.cast<float>();
  return *PackedFloat::FromMatrix(single.data(), static_cast<int>(b.rows()),
                                  static_cast<int>(b.cols()), 1,
                                  static_cast<int64_t>(b.rows()));
}

}  // namespace xcache
