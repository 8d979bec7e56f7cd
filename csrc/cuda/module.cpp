// monai_wscxr._C_cuda: a module of its own, because it needs the CUDA libraries and must not keep _C from loading.
#include <pybind11/pybind11.h>

#include "device_info.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["cuda_runtime"] = wscxr::cuda_runtime_version();
  return info;
}

py::list gpu_capabilities() {
  py::list devices;
  for (const wscxr::DeviceInfo& device : wscxr::cuda_devices()) {
    py::dict entry;
    entry["name"] = device.name;
    entry["compute_capability"] = py::make_tuple(device.major, device.minor);
    entry["multiprocessors"] = device.multiprocessors;
    entry["memory_bytes"] = device.memory_bytes;
    devices.append(entry);
  }
  return devices;
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA part of the monai_wscxr extension";
  m.def("build_info", &build_info, "CUDA version that this module was built with.");
  m.def("gpu_capabilities", &gpu_capabilities, "The CUDA devices of this machine; empty without one.");
}
