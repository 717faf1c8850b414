#include "engine/cuda/plugin.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace xcache::cuda {
namespace {

constexpr char kFileName[] = "libxcache_cuda.so";

// Folder of the running program, with a slash at the end; "" if unknown.
std::string ProgramFolder() {
  char path[4096];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof(path));
  if (n <= 0) return "";
  std::string folder(path, static_cast<size_t>(n));
  folder.resize(folder.rfind('/') + 1);
  return folder;
}

std::vector<std::string> Candidates() {
  const char* named = std::getenv("XCACHE_CUDA_PLUGIN");
  if (named != nullptr && *named != '\0') return {named};
  const std::string folder = ProgramFolder();
  if (folder.empty()) return {};
  return {folder + kFileName, folder + "../bin/" + kFileName};
}

// Whether there is a driver. Asked before the plugin is opened, since that
// loads CUDA's libraries, which are large.
bool HasDriver() {
  void* driver = ::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver == nullptr) return false;
  ::dlclose(driver);
  return true;
}

}  // namespace

absl::StatusOr<std::shared_ptr<DeviceOps>> OpenCudaDevice(int ordinal) {
  std::vector<std::string> found;
  for (const std::string& path : Candidates()) {
    if (::access(path.c_str(), R_OK) != 0) {
      found.push_back(absl::StrCat(path, " cannot be read"));
      continue;
    }
    if (!HasDriver()) {
      return absl::FailedPreconditionError(
          "expected a CUDA driver (libcuda.so.1), found none");
    }
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      found.emplace_back(::dlerror());
      continue;
    }
    const auto open =
        reinterpret_cast<OpenDeviceFn>(::dlsym(library, kOpenDeviceSymbol));
    char error[512] = "it has no entry point";
    DeviceOps* ops =
        open != nullptr ? open(kDeviceOpsVersion, ordinal, error, sizeof(error))
                        : nullptr;
    if (ops == nullptr) {
      ::dlclose(library);
      return absl::FailedPreconditionError(
          absl::StrCat("CUDA plugin ", path, ": ", error));
    }
    // The library stays until the device is closed.
    return std::shared_ptr<DeviceOps>(ops, [library](DeviceOps* p) {
      delete p;
      ::dlclose(library);
    });
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "expected the CUDA plugin ", kFileName,
      " beside the program, found none: ", absl::StrJoin(found, "; ")));
}

}  // namespace xcache::cuda
