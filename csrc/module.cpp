// monai_wscxr._C: build information, CPU features, and the choice of kernels. Operators register themselves with torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "common.h"
#include "cpu/search.h"

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
  capabilities["avx512dq"] = features.avx512dq;
  capabilities["avx512vl"] = features.avx512vl;
  capabilities["avx512_vnni"] = features.avx512_vnni;
  capabilities["avx512_bf16"] = features.avx512_bf16;
  return capabilities;
}

std::vector<std::string> available_search_kernels() {
  std::vector<std::string> names;
  for (const wscxr::search::Kernels* kernels : wscxr::search::kernels_of_this_cpu()) names.push_back(kernels->name);
  return names;
}

void use_search_kernels(const std::string& name) {
  if (!wscxr::search::use_kernels(name.c_str())) throw py::value_error("this CPU has no search kernels named " + name);
}

py::dict search_counts() {
  const wscxr::search::SearchCounts counts = wscxr::search::search_counts();
  py::dict result;
  result["queries"] = counts.queries;
  result["evaluated"] = counts.evaluated;
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU part of the monai_wscxr extension";
  m.def("build_info", &build_info, "Return the compiler and the C++ standard that this module was built with.");
  m.def("cpu_capabilities", &cpu_capabilities,
        "Return which of the instruction sets that the kernels use the running CPU supports.");
  m.def(
      "search_kernels", [] { return wscxr::search::kernels().name; }, "Return the instruction set that searches use.");
  m.def("available_search_kernels", &available_search_kernels,
        "Return the instruction sets that searches can use on this CPU, fastest first.");
  m.def("use_search_kernels", &use_search_kernels,
        "Choose the instruction set of searches and of mixing, for tests and comparisons.");
  m.def("search_counts", &search_counts,
        "Return the number of queries searched and of pairs evaluated exactly since the process started.");
}
