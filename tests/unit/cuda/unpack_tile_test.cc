#include <memory>
#include <random>
#include <vector>

#include "engine/cuda/unpack_tile.cuh"
#include "engine/kernels/codec_kernels.h"
#include "gtest/gtest.h"

namespace xcache::cuda {
namespace {

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& host)
      : bytes_(host.size() * sizeof(T)) {
    EXPECT_EQ(cudaMalloc(&data_, bytes_), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, host.data(), bytes_, cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  T* get() { return static_cast<T*>(data_); }
  std::vector<T> ToHost() const {
    std::vector<T> host(bytes_ / sizeof(T));
    EXPECT_EQ(cudaMemcpy(host.data(), data_, bytes_, cudaMemcpyDeviceToHost),
              cudaSuccess);
    return host;
  }

 private:
  size_t bytes_ = 0;
  void* data_ = nullptr;
};

TEST(UnpackTileTest, GivesTheBitsOfTheCpu) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    GTEST_SKIP() << "no CUDA device or driver on this machine";
  }
  std::mt19937 rng(11);
  std::uniform_real_distribution<float> uniform(-2.0f, 2.0f);
  for (int bits : {2, 3, 4, 8}) {
    for (int num_values : {1, 9, 60, 64}) {
      for (int num_groups : {1, 17, 192, 1024}) {
        const TileShape shape{num_values, num_groups, bits};
        std::vector<uint8_t> packed(
            PackedTileBytes(num_values, num_groups, bits));
        for (uint8_t& byte : packed) byte = static_cast<uint8_t>(rng());
        std::vector<float> steps(static_cast<size_t>(num_groups));
        std::vector<float> bases(steps.size());
        for (float& step : steps) step = uniform(rng);
        for (float& base : bases) base = uniform(rng);
        std::vector<float> expected(
            static_cast<size_t>(num_values * num_groups));

        xcache::UnpackTileArgs cpu;
        cpu.packed = packed.data();
        cpu.num_values = num_values;
        cpu.num_groups = num_groups;
        cpu.bits = bits;
        cpu.steps = steps.data();
        cpu.bases = bases.data();
        cpu.x = expected.data();
        cpu.x_stride = num_groups;
        GetCodecKernels(Isa::kRef).unpack_tile(cpu);

        DeviceArray<uint8_t> device_packed(packed);
        DeviceArray<float> device_steps(steps), device_bases(bases);
        DeviceArray<float> device_x(std::vector<float>(expected.size()));
        UnpackTileArgs args;
        args.packed = device_packed.get();
        args.shape = shape;
        args.steps = device_steps.get();
        args.bases = device_bases.get();
        args.x = device_x.get();
        args.x_stride = num_groups;
        ASSERT_EQ(LaunchUnpackTile(args, nullptr), cudaSuccess);
        ASSERT_EQ(device_x.ToHost(), expected)
            << bits << " bits, " << num_values << " x " << num_groups;
      }
    }
  }
}

}  // namespace
}  // namespace xcache::cuda
