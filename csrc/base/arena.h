// One block of memory that holds many arrays, each on a cache line of its own.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <utility>

#include "base/aligned.h"
#include "base/math.h"

namespace tokprune {

// Zeroed memory straight from the system. Nothing is touched before its first use, so that threads
// that fill parts of it also share the cost of its page faults.
class ZeroPages {
 public:
  ZeroPages() = default;
  explicit ZeroPages(std::size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    mapped_ = bytes + kHugePage;
    start_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start_ == MAP_FAILED) throw std::bad_alloc();
    const auto address = static_cast<int64_t>(reinterpret_cast<intptr_t>(start_));
    data_ = static_cast<std::byte*>(start_) +
            (round_up(address, static_cast<int64_t>(kHugePage)) - address);
    // Only a hint: huge pages save most misses of the address cache.
    madvise(data_, bytes, MADV_HUGEPAGE);
  }
  ~ZeroPages() {
    if (data_) munmap(start_, mapped_);
  }
  ZeroPages(const ZeroPages&) = delete;
  ZeroPages& operator=(const ZeroPages&) = delete;
  ZeroPages(ZeroPages&& other) noexcept { swap(other); }
  ZeroPages& operator=(ZeroPages&& other) noexcept {
    swap(other);
    return *this;
  }

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  void swap(ZeroPages& other) noexcept {
    std::swap(start_, other.start_);
    std::swap(mapped_, other.mapped_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

  void* start_ = nullptr;
  std::size_t mapped_ = 0;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Hands out arrays in the order they are asked for. Without memory it only measures.
class Arena {
 public:
  enum class Use : uint8_t {
    kMeasure,  // no memory: spans of the right size that must not be touched
    kFill,     // zeroed memory to be filled
    kReady,    // memory that already holds the values of an earlier kFill with the same requests
  };

  Arena() = default;
  Arena(std::span<std::byte> memory, Use use) : memory_(memory), use_(use) {}

  template <class T>
  std::span<T> take(int64_t count) {
    const auto at = static_cast<std::size_t>(
        round_up(static_cast<int64_t>(used_), static_cast<int64_t>(kAlignment)));
    const auto size = static_cast<std::size_t>(count);
    used_ = at + size * sizeof(T);
    if (use_ == Use::kMeasure) return {static_cast<T*>(nullptr), 0};
    if (used_ > memory_.size()) throw std::bad_alloc();
    return {reinterpret_cast<T*>(memory_.data() + at), size};
  }

  std::size_t used() const { return used_; }
  bool fills() const { return use_ == Use::kFill; }

 private:
  std::span<std::byte> memory_;
  std::size_t used_ = 0;
  Use use_ = Use::kMeasure;
};

}  // namespace tokprune
