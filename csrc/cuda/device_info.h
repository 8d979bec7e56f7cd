// Properties of the CUDA devices of this machine.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace wscxr {

struct DeviceInfo {
  std::string name;
  int major = 0;
  int minor = 0;
  int multiprocessors = 0;
  std::size_t memory_bytes = 0;
};

int cuda_runtime_version();
// Empty if there is no device or no driver.
std::vector<DeviceInfo> cuda_devices();

}  // namespace wscxr
