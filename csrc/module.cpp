// monai_wscxr._C: build information, CPU features, and the choice of kernels. Operators register themselves with torch.
// The module keeps to Python's limited API (3.10) as the kernels keep to torch's stable ABI, so one binary runs on
// every later Python and torch.
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000
#endif
#include <Python.h>

#include <exception>
#include <string>

#include "common.h"
#include "cpu/search.h"

namespace {

// Adds `value`, a new reference or null, to a dictionary. Returns whether it succeeded; otherwise a Python error is
// set.
bool set(PyObject* dictionary, const char* key, PyObject* value) {
  const bool done = value != nullptr && PyDict_SetItemString(dictionary, key, value) == 0;
  Py_XDECREF(value);
  return done;
}

// Returns a dictionary if all of its items were set, otherwise null.
PyObject* finished(PyObject* dictionary, bool complete) {
  if (complete) return dictionary;
  Py_XDECREF(dictionary);
  return nullptr;
}

PyObject* build_info(PyObject*, PyObject*) {
  PyObject* info = PyDict_New();
  return finished(info,
                  info != nullptr && set(info, "compiler", PyUnicode_FromString(wscxr::compiler_name().c_str())) &&
                      set(info, "cpp_standard", PyLong_FromLong(static_cast<long>(__cplusplus))) &&
                      set(info, "python_abi",
                          PyUnicode_FromFormat("%d.%d", (Py_LIMITED_API >> 24) & 0xff, (Py_LIMITED_API >> 16) & 0xff)));
}

PyObject* cpu_capabilities(PyObject*, PyObject*) {
  const wscxr::CpuFeatures features = wscxr::cpu_features();
  PyObject* found = PyDict_New();
  const auto has = [&](const char* name, bool present) { return set(found, name, PyBool_FromLong(present)); };
  return finished(found, found != nullptr && has("avx2", features.avx2) && has("fma", features.fma) &&
                             has("avx512f", features.avx512f) && has("avx512bw", features.avx512bw) &&
                             has("avx512dq", features.avx512dq) && has("avx512vl", features.avx512vl) &&
                             has("avx512_vnni", features.avx512_vnni) && has("avx512_bf16", features.avx512_bf16));
}

PyObject* search_kernels(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(wscxr::search::kernels().name);
  } catch (const std::exception& error) {  // MONAI_WSCXR_CPU names kernels that this CPU does not have
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyObject* available_search_kernels(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  if (names == nullptr) return nullptr;
  for (const wscxr::search::Kernels* kernels : wscxr::search::kernels_of_this_cpu()) {
    PyObject* name = PyUnicode_FromString(kernels->name);
    const bool added = name != nullptr && PyList_Append(names, name) == 0;
    Py_XDECREF(name);
    if (!added) return finished(names, false);
  }
  return names;
}

PyObject* use_search_kernels(PyObject*, PyObject* argument) {
  const char* name = PyUnicode_AsUTF8AndSize(argument, nullptr);
  if (name == nullptr) return nullptr;
  if (!wscxr::search::use_kernels(name)) {
    PyErr_Format(PyExc_ValueError, "this CPU has no search kernels named %s", name);
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyObject* search_counts(PyObject*, PyObject*) {
  const wscxr::search::SearchCounts counts = wscxr::search::search_counts();
  PyObject* result = PyDict_New();
  return finished(result, result != nullptr && set(result, "queries", PyLong_FromLongLong(counts.queries)) &&
                              set(result, "evaluated", PyLong_FromLongLong(counts.evaluated)));
}

PyMethodDef functions[] = {
    {"build_info", build_info, METH_NOARGS,
     "Return the compiler, the C++ standard and the oldest Python that this module was built for."},
    {"cpu_capabilities", cpu_capabilities, METH_NOARGS,
     "Return which of the instruction sets that the kernels use the running CPU supports."},
    {"search_kernels", search_kernels, METH_NOARGS, "Return the instruction set that searches use."},
    {"available_search_kernels", available_search_kernels, METH_NOARGS,
     "Return the instruction sets that searches can use on this CPU, fastest first."},
    {"use_search_kernels", use_search_kernels, METH_O,
     "Choose the instruction set of searches and of mixing, for tests and comparisons."},
    {"search_counts", search_counts, METH_NOARGS,
     "Return the number of queries searched and of pairs evaluated exactly since the process started."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    "_C",
    "CPU part of the monai_wscxr extension",
    -1,
    functions,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
