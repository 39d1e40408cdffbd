// Rounding the operands of a head's attention to int8 products. Contracts: QuantizePanelArgs,
// QuantizeProbabilitiesArgs in abi.h.

#include "kernels/loads.inl"

void quantize_panel(const QuantizePanelArgs& args) {
  for (int64_t lane = 0; lane < kPanel; lane += V::kLanes) {
    const int64_t left = args.n - lane;
    const auto row = [&](int64_t k) { return load_left(args.src + k * args.ld_src + lane, left); };
    V::reg top = V::zero();
    V::reg poison = V::zero();
    for (int64_t k = 0; k < args.k; ++k) {
      top = V::max(top, V::abs(row(k)));
      poison = V::fma(row(k), V::zero(), poison);
    }
    top = V::add(top, poison);

    float inverse[V::kLanes];
    V::store(inverse, top);
    V::store(args.scale + lane, V::div(top, V::set1(127.0f)));
    for (float& x : inverse) x = x > 1e-30f ? 127.0f / x : 0.0f;
    const V::reg steps = V::load(inverse);

    const auto rounded = [&](int64_t k) { return V::round(V::mul(row(k), steps)); };
    V::reg sum = V::zero();  // of integers below 2^24: exact in any order
    int8_t* dst = args.dst + 4 * lane;
    int64_t k = 0;
    for (; k + 4 <= args.k; k += 4, dst += 4 * kPanel) {
      const V::reg x[4] = {rounded(k), rounded(k + 1), rounded(k + 2), rounded(k + 3)};
      V::store_quads(dst, x);
      sum = V::add(sum, V::add(V::add(x[0], x[1]), V::add(x[2], x[3])));
    }
    for (; k < args.depth; k += 4, dst += 4 * kPanel) {
      V::reg x[4];
      for (int t = 0; t < 4; ++t) {
        x[t] = k + t < args.k ? rounded(k + t) : V::zero();
        sum = V::add(sum, x[t]);
      }
      V::store_quads(dst, x);
    }
    float total[V::kLanes];
    V::store(total, sum);
    for (int j = 0; j < V::kLanes; ++j) {
      // Of a poisoned column it may be NaN.
      args.sum[lane + j] = inverse[j] > 0.0f ? static_cast<int32_t>(total[j]) : 0;
    }
  }
}

// Several rows at a time: each is a chain of roundings that waits for the one before.
template <int ROWS>
inline void quantize_probability_rows(const QuantizeProbabilitiesArgs& args, int64_t row) {
  const float* src = args.src + row * args.ld_src;
  uint8_t* dst = args.dst + row * args.ld_dst;
  for (int64_t lane = 0; lane < kPanel; lane += V::kLanes) {
    V::reg rest[ROWS];
    for (int i = 0; i < ROWS; ++i) rest[i] = V::zero();
    for (int64_t block = 0; block < args.cols; block += kPanel) {
      const int64_t j = block + lane;
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i) {
        const V::reg steps = V::mul(V::load(src + i * args.ld_src + j), V::set1(255.0f));
        const V::reg x = V::add(steps, rest[i]);
        const V::reg rounded = V::round(x);
        V::store_u8(dst + i * args.ld_dst + j, rounded, 0);
        rest[i] = V::sub(x, rounded);
      }
    }
  }
  const int64_t end = (args.cols + kPanel - 1) / kPanel * kPanel;
  for (int i = 0; i < ROWS; ++i) {
    for (int64_t j = end; j < args.ld_dst; ++j) dst[i * args.ld_dst + j] = 0;
  }
}

void quantize_probabilities(const QuantizeProbabilitiesArgs& args) {
  int64_t row = 0;
  for (; row + 4 <= args.rows; row += 4) quantize_probability_rows<4>(args, row);
  for (; row < args.rows; ++row) quantize_probability_rows<1>(args, row);
}
