// tests.helpers._cuda_emulation: the emulation as a Python module, for tests only. It is never part of a wheel.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "emulation.h"
#include "filter_math.h"
#include "philox.h"

namespace py = pybind11;

namespace wscxr {

namespace {

using Address = std::uintptr_t;  // of a tensor in host memory that the caller keeps alive

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// (address, rows, channels, type: 0 float64, 1 float32, 2 float16, 3 bfloat16)
Rows matrix_of(const py::tuple& t) {
  return {pointer<const void>(t[0].cast<Address>()), t[1].cast<std::int64_t>(), t[2].cast<std::int64_t>(),
          static_cast<Type>(t[3].cast<int>())};
}

SearchOptions options_of(const py::dict& d) {
  SearchOptions options;
  if (d.contains("kernel")) options.kernel = kernel_of(d["kernel"].cast<std::string>());
  if (d.contains("block_bytes")) options.block_bytes = d["block_bytes"].cast<std::int64_t>();
  if (d.contains("query_block")) options.query_block = d["query_block"].cast<std::int64_t>();
  if (d.contains("bank_block")) options.bank_block = d["bank_block"].cast<std::int64_t>();
  return options;
}

emulation::Settings settings_of(const py::dict& d) {
  emulation::Settings settings;
  if (d.contains("seed")) settings.seed = d["seed"].cast<std::uint64_t>();
  if (d.contains("truncating")) settings.truncating = d["truncating"].cast<bool>();
  if (d.contains("memory_bytes")) settings.memory_bytes = d["memory_bytes"].cast<std::int64_t>();
  return settings;
}

py::dict report_of(const emulation::Report& report) {
  py::dict d;
  d["candidates"] = report.candidates;
  d["rescans"] = report.rescans;
  d["allocation_failures"] = report.allocation_failures;
  d["tiles"] = report.tiles;
  d["pairs"] = report.pairs;
  return d;
}

py::tuple words_of(std::uint64_t counter, std::uint64_t key) {
  const PhiloxWords words = philox(counter, key);
  return py::make_tuple(words.w[0], words.w[1], words.w[2], words.w[3]);
}

}  // namespace
}  // namespace wscxr

using namespace wscxr;

PYBIND11_MODULE(_cuda_emulation, m) {
  m.doc() =
      "The CUDA kernels on the host, for tests on machines without a GPU. Matrices are tuples (address, rows, "
      "channels, "
      "type), results are written to addresses, `options` is a dictionary of search options and emulation settings.";
  m.def("min_distance",
        [](const py::tuple& query, const py::tuple& bank, Address distance, Address index, const py::dict& options) {
          return report_of(emulation::min_distance(matrix_of(query), matrix_of(bank), options_of(options),
                                                   settings_of(options), pointer<float>(distance),
                                                   pointer<std::int64_t>(index)));
        });
  m.def("mine_top_r", [](const py::tuple& query, const py::tuple& bank, std::int64_t k, Address index, Address distance,
                         const py::dict& options) {
    return report_of(emulation::mine_top_r(matrix_of(query), matrix_of(bank), k, options_of(options),
                                           settings_of(options), pointer<std::int64_t>(index),
                                           pointer<float>(distance)));
  });
  m.def("min_distance_block", [](const py::tuple& query, const py::tuple& bank, std::int64_t first_row,
                                 Address best_squared, Address best_index, const py::dict& options) {
    return report_of(emulation::min_distance_block(matrix_of(query), matrix_of(bank), first_row, options_of(options),
                                                   settings_of(options), pointer<double>(best_squared),
                                                   pointer<std::int64_t>(best_index)));
  });
  m.def("mixup", [](const py::tuple& normal, const py::tuple& abnormal, std::int64_t seed, std::int64_t offset,
                    float low, float high, std::int64_t blocks, Address mixed, Address source, Address alpha,
                    const py::dict& options) {
    emulation::mixup(matrix_of(normal), matrix_of(abnormal), seed, offset, low, high, blocks, settings_of(options),
                     pointer<void>(mixed), pointer<std::int64_t>(source), pointer<float>(alpha));
  });
  m.def("filter", [](const py::tuple& query, const py::tuple& bank, bool int8, double scale, Address minima,
                     Address bound, Address query_squared, const py::dict& options) {
    emulation::filter(matrix_of(query), matrix_of(bank), int8, scale, settings_of(options), pointer<float>(minima),
                      pointer<double>(bound), pointer<double>(query_squared));
  });
  m.def("self_check", [] {
    py::list messages;
    for (const std::string& message : emulation::self_check()) messages.append(message);
    return messages;
  });
  m.def("pack_minimum", &pack_minimum, py::arg("t"), py::arg("column"));
  m.def("packed_column", &packed_column);
  m.def("packed_least", &packed_least);
  m.def("packed_largest", &packed_largest);
  m.def("philox", &words_of, py::arg("counter"), py::arg("key"));
  m.def("index_below", [](std::uint64_t u, std::uint64_t n) { return index_below(u, n); });
  m.def("plan_search",
        [](std::int64_t queries, std::int64_t bank_rows, std::int64_t channels, bool int8, std::int64_t block_bytes) {
          const SearchPlan plan = plan_search(queries, bank_rows, channels, int8, block_bytes);
          return py::make_tuple(plan.query_block, plan.bank_block, plan.bytes);
        });
}
