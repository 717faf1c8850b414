// What the tests of device operations share: device arrays, and a fixture that
// opens the device or skips.
#ifndef XCACHE_TESTS_UNIT_ENGINE_DEVICE_OPS_FIXTURE_H_
#define XCACHE_TESTS_UNIT_ENGINE_DEVICE_OPS_FIXTURE_H_

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "engine/device/memory.h"
#include "engine/device/ops.h"
#include "engine/kernels/isa.h"
#include "engine/kernels/kernels.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/device/test_devices.h"

namespace xcache::cuda {

// A device array that begins as a copy of a vector.
template <typename T>
class Array {
 public:
  Array(DeviceOps& ops, const std::vector<T>& host)
      : ops_(ops), memory_(ops), size_(host.size()) {
    EXPECT_TRUE(memory_.Reserve(std::max<size_t>(1, bytes())).ok());
    ops_.CopyToDevice(StreamId::kCompute, get(), host.data(), bytes());
    ops_.Synchronize(StreamId::kCompute);
  }
  T* get() const { return memory_.template as<T>(); }
  std::vector<T> ToHost() const {
    std::vector<T> host(size_);
    ops_.CopyToHost(StreamId::kCompute, host.data(), get(), bytes());
    ops_.Synchronize(StreamId::kCompute);
    return host;
  }

 private:
  size_t bytes() const { return size_ * sizeof(T); }

  DeviceOps& ops_;
  DeviceMemory memory_;
  const size_t size_;
};

class DeviceOpsTest : public ::testing::TestWithParam<testing::TestDevice> {
 protected:
  void SetUp() override {
    auto ops = GetParam().open();
    if (!ops.ok()) GTEST_SKIP() << ops.status().message();
    ops_ = *std::move(ops);
  }
  void TearDown() override {
    if (ops_ != nullptr) {
      EXPECT_STREQ(ops_->error(), nullptr);
    }
  }

  std::vector<float> Random(size_t n, float scale = 1.0f) {
    std::normal_distribution<float> normal(0.0f, scale);
    std::vector<float> out(n);
    for (float& x : out) x = normal(rng_);
    return out;
  }

  std::shared_ptr<DeviceOps> ops_;
  std::mt19937 rng_{17};
  const Kernels& kernels_ = GetKernels(Isa::kRef);
};

}  // namespace xcache::cuda

#endif  // XCACHE_TESTS_UNIT_ENGINE_DEVICE_OPS_FIXTURE_H_
