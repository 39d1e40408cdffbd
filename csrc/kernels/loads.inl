#pragma once

// Loads that end with a row.

// The first `left` values at p, which may be any number, and zeros.
inline V::reg load_left(const float* p, int64_t left) {
  if (left >= V::kLanes) return V::load(p);
  return left > 0 ? V::load_n(p, left, 0.0f) : V::zero();
}
