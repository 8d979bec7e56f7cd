// Arrays whose memory goes back to the system as soon as they are freed.
//
// malloc keeps freed blocks of some megabytes and does not always fit the next ones into them, so a search block after
// block would hold several times what it uses. Large arrays therefore have pages of their own.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace wscxr {

template <typename T>
struct PageAllocator {
  using value_type = T;
  static constexpr std::size_t kOwnPages = 128 << 10;  // bytes from which an array has its own

  PageAllocator() = default;
  template <typename U>
  PageAllocator(const PageAllocator<U>&) {}

  T* allocate(std::size_t count) {
#ifdef __linux__
    if (count * sizeof(T) >= kOwnPages) {
      void* data = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (data == MAP_FAILED) throw std::bad_alloc();
      return static_cast<T*>(data);
    }
#endif
    return std::allocator<T>().allocate(count);
  }
  void deallocate(T* data, std::size_t count) {
#ifdef __linux__
    if (count * sizeof(T) >= kOwnPages) {
      munmap(data, count * sizeof(T));
      return;
    }
#endif
    std::allocator<T>().deallocate(data, count);
  }
  // Elements without a stated value are left as they are: what fills an array writes all of it.
  template <typename U>
  void construct(U* at) {
    ::new (static_cast<void*>(at)) U;
  }
  template <typename U, typename First, typename... Rest>
  void construct(U* at, First&& first, Rest&&... rest) {
    ::new (static_cast<void*>(at)) U(std::forward<First>(first), std::forward<Rest>(rest)...);
  }
  bool operator==(const PageAllocator&) const { return true; }
  bool operator!=(const PageAllocator&) const { return false; }
};

template <typename T>
using Array = std::vector<T, PageAllocator<T>>;

}  // namespace wscxr
