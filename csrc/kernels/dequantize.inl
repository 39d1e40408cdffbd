#pragma once

// From exact int32 sums to the float32 product. Contract: GemmInt8Args in abi.h.

// float(sum - a_zero * b_sum) * (a_scale * b_scale) for one row of one panel, whose sums are of
// activations less `shift`.
inline void store_dequantized(const GemmInt8Args& g, int64_t row, int64_t panel,
                              const int32_t* sums, int32_t shift) {
  const int64_t column = panel * kPanel;
  float* c = g.c + row * g.ldc + column;
  const int32_t zero = g.a_zero[row] - shift;
  const V::reg a_scale = V::set1(g.a_scale[row]);
  for (int64_t j = 0; j < kPanel; j += V::kLanes) {
    const V::reg x = V::from_int(sums + j, g.b_sum + column + j, zero);
    V::store(c + j, V::mul(x, V::mul(a_scale, V::load(g.b_scale + column + j))));
  }
}
