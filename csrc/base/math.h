// Integer helpers shared by every layer.
#pragma once

#include <cstdint>

namespace tokprune {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Half-open range of `total` items that part `index` of `parts` owns; parts differ by at most one.
struct Range {
  int64_t begin;
  int64_t end;
};
constexpr Range split_range(int64_t total, int64_t parts, int64_t index) {
  return {total * index / parts, total * (index + 1) / parts};
}

}  // namespace tokprune
