// How much of the last search was recomputed exactly; off unless a benchmark asks for it.
#pragma once

#include <atomic>

namespace wscxr {

struct SearchStatistics {
  static bool wanted() { return state().wanted.load(); }
  static void want(bool on) { state().wanted.store(on); }
  static void keep(unsigned long long candidates, unsigned long long rescans) {
    state().candidates.store(candidates);
    state().rescans.store(rescans);
  }
  static unsigned long long candidates() { return state().candidates.load(); }
  static unsigned long long rescans() { return state().rescans.load(); }

 private:
  struct State {
    std::atomic<bool> wanted{false};
    std::atomic<unsigned long long> candidates{0}, rescans{0};
  };
  static State& state() {
    static State state;
    return state;
  }
};

}  // namespace wscxr
