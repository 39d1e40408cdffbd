// Integer helpers shared by every layer.
#pragma once

#include <cstdint>

namespace tokprune {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Half-open.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  constexpr int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

// What part `index` of `parts` owns of `total` items; parts differ by at most one.
constexpr Range split_range(int64_t total, int64_t parts, int64_t index) {
  return {total * index / parts, total * (index + 1) / parts};
}

}  // namespace tokprune
