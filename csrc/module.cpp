// monai_wscxr._C: what the extension was built with and what this CPU can do.
#include <pybind11/pybind11.h>

#include "common.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["compiler"] = wscxr::compiler_name();
  info["cpp_standard"] = static_cast<long>(__cplusplus);
  info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
  return info;
}

py::dict cpu_capabilities() {
  const wscxr::CpuFeatures features = wscxr::cpu_features();
  py::dict capabilities;
  capabilities["avx2"] = features.avx2;
  capabilities["fma"] = features.fma;
  capabilities["avx512f"] = features.avx512f;
  capabilities["avx512bw"] = features.avx512bw;
  capabilities["avx512vl"] = features.avx512vl;
  capabilities["avx512_vnni"] = features.avx512_vnni;
  capabilities["avx512_bf16"] = features.avx512_bf16;
  return capabilities;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU part of the monai_wscxr extension";
  m.def("build_info", &build_info, "Compiler and standard that this module was built with.");
  m.def("cpu_capabilities", &cpu_capabilities, "Instruction sets of the running CPU that kernels choose between.");
}
