#include "server/metrics/metrics_page.h"

#include <exception>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "prometheus/exposer.h"

namespace xcache {
namespace {

class MetricsPageImpl final : public MetricsPage {
 public:
  MetricsPageImpl(std::unique_ptr<prometheus::Exposer> exposer,
                  std::string address)
      : exposer_(std::move(exposer)), address_(std::move(address)) {}
  const std::string& address() const override { return address_; }

 private:
  std::unique_ptr<prometheus::Exposer> exposer_;
  std::string address_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsPage>> MetricsPage::Listen(
    const std::string& address,
    std::weak_ptr<prometheus::Collectable> collectable) {
  // civetweb takes addresses, not names.
  std::string bind = address;
  if (bind.rfind("localhost:", 0) == 0) bind.replace(0, 9, "127.0.0.1");
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(bind);
    const std::vector<int> ports = exposer->GetListeningPorts();
    if (ports.empty()) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen on ", address, " (--metrics-listen)"));
    }
    exposer->RegisterCollectable(collectable);
    std::string bound =
        absl::StrCat(bind.substr(0, bind.rfind(':')), ":", ports.front());
    return std::make_unique<MetricsPageImpl>(std::move(exposer),
                                             std::move(bound));
  } catch (const std::exception& error) {
    // civetweb says no more than "null context when constructing CivetServer".
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", address,
        " (--metrics-listen): the port is in use or the address not of this "
        "machine (",
        error.what(), ")"));
  }
}

}  // namespace xcache
