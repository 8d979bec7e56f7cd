// Parallel loops on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace wscxr {

// Call body(i) for every i below `count`; a thread processes at least `grain` of them.
template <typename Body>
void for_each(std::int64_t count, std::int64_t grain, const Body& body) {
  torch::stable::parallel_for(0, count, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) body(i);
  });
}

}  // namespace wscxr
