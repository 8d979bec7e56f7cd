// Arrays whose memory returns to the operating system as soon as they are freed.
//
// malloc keeps freed blocks of several megabytes and does not always reuse them for the next ones, so a block-wise
// search would hold several times the memory that it uses. Large arrays therefore have their own pages.
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
  static constexpr std::size_t kOwnPages = 128 << 10;  // arrays of this size and larger have their own

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
  // Elements without an initial value stay uninitialised; every array is written completely before it is read.
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
