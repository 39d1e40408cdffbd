// Cache-line aligned, zero-initialised storage.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "base/math.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace tokprune {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

struct AlignedDelete {
  std::size_t align = kAlignment;
  void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{align}); }
};

class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(std::size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    const std::size_t align = bytes >= kHugePage ? kHugePage : kAlignment;
    const auto rounded = static_cast<std::size_t>(
        round_up(static_cast<int64_t>(bytes), static_cast<int64_t>(kAlignment)));
    data_ = Pointer(static_cast<std::byte*>(::operator new(rounded, std::align_val_t{align})),
                    AlignedDelete{align});
#if defined(__linux__)
    // Only a hint: large weights and activations cost far fewer TLB misses on huge pages.
    if (align == kHugePage) madvise(data_.get(), rounded, MADV_HUGEPAGE);
#endif
    std::memset(data_.get(), 0, rounded);
  }

  std::byte* data() const { return data_.get(); }
  std::size_t size() const { return size_; }

 private:
  using Pointer = std::unique_ptr<std::byte[], AlignedDelete>;
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
