// Rounding rows of activations to bfloat16 operands; subnormal values become zero. Contract:
// RoundRowsArgs in abi.h.

#include "kernels/loads.inl"

// Thirty-two values: those of x, then those of y.
inline __m512i round_to_bf16(V::reg x, V::reg y) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(y, x));
}

inline V::reg widen_bf16(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

// What `rounded` leaves of x and y, rounded as well.
inline __m512i round_rest(V::reg x, V::reg y, __m512i rounded) {
  return round_to_bf16(V::sub(x, widen_bf16(_mm512_castsi512_si256(rounded))),
                       V::sub(y, widen_bf16(_mm512_extracti64x4_epi64(rounded, 1))));
}

void round_rows(const RoundRowsArgs& args) {
  for (int64_t i = 0; i < args.rows; ++i) {
    const float* src = args.src + i * args.ld_src;
    uint16_t* dst = args.dst + i * args.ld_dst;
    uint16_t* low = args.dst_low ? args.dst_low + i * args.ld_dst : nullptr;
    for (int64_t j = 0; j < args.cols; j += kBf16Depth) {
      const V::reg x = load_left(src + j, args.cols - j);
      const V::reg y = load_left(src + j + V::kLanes, args.cols - j - V::kLanes);
      const __m512i high = round_to_bf16(x, y);
      _mm512_storeu_si512(dst + j, high);
      if (low) _mm512_storeu_si512(low + j, round_rest(x, y, high));
    }
  }
}
