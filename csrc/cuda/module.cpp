// monai_wscxr._C_cuda: a separate module, because it needs the CUDA libraries, and _C must load without them.
#include <pybind11/pybind11.h>

#include "device_info.h"
#include "statistics.h"
#include "tile_minimum_cuda.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["cuda_runtime"] = wscxr::cuda_runtime_version();
  const char* const reason = wscxr::hopper_unavailable(9, 0);
  info["hopper_kernel"] = reason == nullptr ? std::string("built") : std::string("left out: ") + reason;
  info["hopper_layout_is_as_assumed"] = wscxr::hopper_layout_is_as_assumed();
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

py::dict search_statistics() {
  py::dict counted;
  counted["candidates"] = wscxr::SearchStatistics::candidates();
  counted["rescans"] = wscxr::SearchStatistics::rescans();
  return counted;
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA part of the monai_wscxr extension";
  m.def("build_info", &build_info,
        "Return the CUDA version that this module was built with, and which kernels it holds.");
  m.def("gpu_capabilities", &gpu_capabilities, "Return the CUDA devices of this machine; empty if there are none.");
  m.def("count_exact_distances", &wscxr::SearchStatistics::enable, py::arg("on"),
        "Count exact distances and completely evaluated groups in later searches; adds a synchronisation to each.");
  m.def("search_statistics", &search_statistics, "Return the counts of the last search that ran with counting on.");
}
