// Cache-line aligned, zero-initialised storage.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "base/math.h"

namespace tokprune {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

struct AlignedDelete {
  void* mapping = nullptr;  // null = from operator new
  std::size_t mapped = 0;
  void operator()(std::byte* p) const {
    if (mapping) {
      munmap(mapping, mapped);
    } else {
      ::operator delete(p, std::align_val_t{kAlignment});
    }
  }
};

// From the size of a huge page on, memory comes straight from the system and goes straight back:
// the C library would keep much of what several threads free. Nothing of it is touched before its
// first use, so that threads that fill parts of it also share the cost of its page faults.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(std::size_t bytes) : data_(bytes < kHugePage ? take(bytes) : map(bytes)) {
    size_ = bytes;
  }

  std::byte* data() const { return data_.get(); }
  std::size_t size() const { return size_; }

 private:
  using Pointer = std::unique_ptr<std::byte[], AlignedDelete>;

  static Pointer take(std::size_t bytes) {
    if (bytes == 0) return {};
    const auto rounded = static_cast<std::size_t>(
        round_up(static_cast<int64_t>(bytes), static_cast<int64_t>(kAlignment)));
    Pointer data(static_cast<std::byte*>(::operator new(rounded, std::align_val_t{kAlignment})));
    std::memset(data.get(), 0, rounded);
    return data;
  }

  static Pointer map(std::size_t bytes) {
    const std::size_t mapped = bytes + kHugePage;
    void* start = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) throw std::bad_alloc();
    const auto address = static_cast<int64_t>(reinterpret_cast<intptr_t>(start));
    const int64_t skipped = round_up(address, static_cast<int64_t>(kHugePage)) - address;
    Pointer data(static_cast<std::byte*>(start) + skipped, AlignedDelete{start, mapped});
    // Only a hint: huge pages save most misses of the address cache.
    madvise(data.get(), bytes, MADV_HUGEPAGE);
    return data;
  }

  Pointer data_;
  std::size_t size_ = 0;
};

// A zero-initialised, 64-byte aligned array of trivially copyable T.
template <class T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(std::size_t count) : bytes_(count * sizeof(T)), count_(count) {}
  T* data() const { return reinterpret_cast<T*>(bytes_.data()); }
  T& operator[](std::size_t i) const { return data()[i]; }
  std::size_t size() const { return count_; }
  bool empty() const { return count_ == 0; }

 private:
  AlignedBytes bytes_;
  std::size_t count_ = 0;
};

}  // namespace tokprune
