// Rounding rows of activations to a product's operand. Contract: QuantizeRowsArgs in abi.h.

void quantize_rows(const QuantizeRowsArgs& args) {
  const int64_t whole = args.cols / V::kLanes * V::kLanes;
  const int64_t tail = args.cols - whole;
  const int64_t padded = (args.cols + kInt8Depth - 1) / kInt8Depth * kInt8Depth;
  for (int64_t i = 0; i < args.rows; ++i) {
    const float* src = args.src + i * args.ld_src;
    uint8_t* dst = args.dst + i * args.ld_dst;
    V::reg low = V::zero();
    V::reg high = V::zero();
    for (int64_t j = 0; j < whole; j += V::kLanes) {
      const V::reg x = V::load(src + j);
      low = V::min(low, x);
      high = V::max(high, x);
    }
    if (tail) {
      const V::reg x = V::load_n(src + whole, tail, 0.0f);
      low = V::min(low, x);
      high = V::max(high, x);
    }
    const float bottom = -V::maximum(V::sub(V::zero(), low));
    const float range = V::maximum(high) - bottom;
    const float steps = range > 0.0f ? 255.0f / range : 0.0f;
    const V::reg inverse = V::set1(steps);
    const V::reg offset = V::round(V::mul(V::set1(-bottom), inverse));
    int32_t zero[V::kLanes];
    V::store_int(zero, offset);
    args.scale[i] = range / 255.0f;
    args.zero[i] = zero[0];
    // round(x / scale) + zero lies in [-1, 256]; store_u8 clamps.
    for (int64_t j = 0; j < whole; j += V::kLanes) {
      V::store_u8(dst + j, V::add(V::round(V::mul(V::load(src + j), inverse)), offset));
    }
    if (tail) {
      uint8_t last[V::kLanes];
      const V::reg x = V::load_n(src + whole, tail, 0.0f);
      V::store_u8(last, V::add(V::round(V::mul(x, inverse)), offset));
      for (int64_t j = 0; j < tail; ++j) dst[whole + j] = last[j];
    }
    for (int64_t j = args.cols; j < padded; ++j) dst[j] = 0;
  }
}
