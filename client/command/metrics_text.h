// Reads a Prometheus text page: fetching it and looking values up. Only what
// `xcache stats` needs of the format; comments and exemplars are skipped.
#ifndef XCACHE_CLIENT_COMMAND_METRICS_TEXT_H_
#define XCACHE_CLIENT_COMMAND_METRICS_TEXT_H_

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace xcache::command {

using Labels = std::map<std::string, std::string>;

class MetricsText {
 public:
  // InvalidArgument, with the line, where the text is no metrics page.
  static absl::StatusOr<MetricsText> Parse(std::string_view text);

  // Sum of the samples whose labels include `labels`; 0 where there is none.
  double Sum(const std::string& name, const Labels& labels = {}) const;
  // The first sample's label; empty where there is none.
  std::string Label(const std::string& name, const std::string& label) const;
  // Linear within a bucket, as Prometheus' histogram_quantile() does it. The
  // counts of `before` are taken off. Nothing observed: none.
  std::optional<double> Quantile(const std::string& histogram, double q,
                                 const MetricsText* before) const;

  struct Sample {
    Labels labels;
    double value = 0;
  };
  // By metric, in the page's order.
  const std::map<std::string, std::vector<Sample>>& samples() const {
    return samples_;
  }

 private:
  std::map<std::string, std::vector<Sample>> samples_;
};

// GET http://`address``path`, plain. `address` is host:port.
absl::StatusOr<std::string> HttpGet(const std::string& address,
                                    const std::string& path);

}  // namespace xcache::command

#endif  // XCACHE_CLIENT_COMMAND_METRICS_TEXT_H_
