// One block of memory that holds many arrays, each on a cache line of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <span>

#include "base/aligned.h"
#include "base/math.h"

namespace tokprune {

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
