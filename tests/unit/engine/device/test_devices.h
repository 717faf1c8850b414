// The devices that the tests of device operations run on: the host's emulation
// in every order of threads, and the first GPU, which is not there on most
// machines.
#ifndef XCACHE_TESTS_UNIT_ENGINE_DEVICE_TEST_DEVICES_H_
#define XCACHE_TESTS_UNIT_ENGINE_DEVICE_TEST_DEVICES_H_

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/cuda/plugin.h"
#include "engine/device/ops.h"
#include "engine/emulation/host_ops.h"

namespace xcache::testing {

struct TestDevice {
  std::string name;
  std::function<absl::StatusOr<std::shared_ptr<cuda::DeviceOps>>()> open;
};
inline void PrintTo(const TestDevice& d, std::ostream* out) { *out << d.name; }

inline TestDevice HostDevice(std::string name, cuda::ThreadOrder order) {
  return {std::move(name),
          [order]() -> absl::StatusOr<std::shared_ptr<cuda::DeviceOps>> {
            cuda::HostOpsOptions options;
            options.order = order;
            return std::shared_ptr<cuda::DeviceOps>(cuda::MakeHostOps(options));
          }};
}

inline std::vector<TestDevice> TestDevices() {
  return {HostDevice("Host", cuda::ThreadOrder::kForward),
          HostDevice("HostBackward", cuda::ThreadOrder::kBackward),
          HostDevice("HostScattered", cuda::ThreadOrder::kScattered),
          {"Gpu", [] { return cuda::OpenCudaDevice(0); }}};
}

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_UNIT_ENGINE_DEVICE_TEST_DEVICES_H_
