#pragma once

#include <pybind11/pybind11.h>

namespace wscxr {

// Adds the submodule `emulation`: the kernels on the host, for tests.
void add_emulation(pybind11::module_& m);

}  // namespace wscxr
