// Rounding rows of activations to a product's operand. Contract: QuantizeRowsArgs in abi.h.

// Smallest and largest of `cols` values and zero; NaN where one of them is NaN or infinite, which a
// minimum alone may pass over. Several at a time: a chain of one minimum after another would wait
// for each.
inline void value_range(const float* src, int64_t cols, float& bottom, float& top) {
  constexpr int kChains = 4;
  constexpr int64_t kStep = kChains * V::kLanes;
  V::reg low[kChains];
  V::reg high[kChains];
  V::reg poison[kChains];
  for (int c = 0; c < kChains; ++c) low[c] = high[c] = poison[c] = V::zero();
  int64_t j = 0;
  for (; j + kStep <= cols; j += kStep) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) {
      const V::reg x = V::load(src + j + c * V::kLanes);
      low[c] = V::min(low[c], x);
      high[c] = V::max(high[c], x);
      poison[c] = V::fma(x, V::zero(), poison[c]);
    }
  }
  for (; j < cols; j += V::kLanes) {
    const int64_t left = cols - j;
    const V::reg x = left < V::kLanes ? V::load_n(src + j, left, 0.0f) : V::load(src + j);
    low[0] = V::min(low[0], x);
    high[0] = V::max(high[0], x);
    poison[0] = V::fma(x, V::zero(), poison[0]);
  }
  const V::reg least = V::min(V::min(low[0], low[1]), V::min(low[2], low[3]));
  const V::reg most = V::max(V::max(high[0], high[1]), V::max(high[2], high[3]));
  const V::reg none = V::add(V::add(poison[0], poison[1]), V::add(poison[2], poison[3]));
  bottom = -V::maximum(V::sub(V::zero(), least));
  top = V::maximum(most) + V::sum(none);
}

void quantize_rows(const QuantizeRowsArgs& args) {
  const int64_t whole = args.cols / V::kLanes * V::kLanes;
  const int64_t tail = args.cols - whole;
  const int64_t padded = (args.cols + kInt8Depth - 1) / kInt8Depth * kInt8Depth;
  for (int64_t i = 0; i < args.rows; ++i) {
    const float* src = args.src + i * args.ld_src;
    uint8_t* dst = args.dst + i * args.ld_dst;
    float bottom;
    float top;
    value_range(src, args.cols, bottom, top);
    const float range = top - bottom;
    // A range too small to divide by, infinite or NaN leaves nothing but zeros.
    const float steps = range > 1e-30f ? 255.0f / range : 0.0f;
    // Half to even, like every rounding here; the value lies in [0, 255].
    constexpr float kMagic = 12582912.0f;
    const int32_t zero =
        steps > 0.0f ? static_cast<int32_t>((-bottom * steps + kMagic) - kMagic) : 0;
    args.scale[i] = range / 255.0f;
    args.zero[i] = zero;
    const V::reg inverse = V::set1(steps);
    for (int64_t j = 0; j < whole; j += V::kLanes) {
      V::store_u8(dst + j, V::mul(V::load(src + j), inverse), zero);
    }
    if (tail) {
      uint8_t last[V::kLanes];
      V::store_u8(last, V::mul(V::load_n(src + whole, tail, 0.0f), inverse), zero);
      for (int64_t j = 0; j < tail; ++j) dst[whole + j] = last[j];
    }
    for (int64_t j = args.cols; j < padded; ++j) dst[j] = 0;
  }
}
