// Counts of exact evaluations in the last search, for benchmarks; off by default.
#pragma once

#include <atomic>

namespace wscxr {

struct SearchStatistics {
  static bool enabled() { return state().enabled.load(); }
  static void enable(bool on) { state().enabled.store(on); }
  static void record(unsigned long long candidates, unsigned long long rescans) {
    state().candidates.store(candidates);
    state().rescans.store(rescans);
  }
  static unsigned long long candidates() { return state().candidates.load(); }
  static unsigned long long rescans() { return state().rescans.load(); }

 private:
  struct State {
    std::atomic<bool> enabled{false};
    std::atomic<unsigned long long> candidates{0}, rescans{0};
  };
  static State& state() {
    static State state;
    return state;
  }
};

}  // namespace wscxr
