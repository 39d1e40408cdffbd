// Rounding rows of activations to bfloat16 operands; subnormal values become zero. Contract:
// RoundRowsArgs in abi.h.

inline __m256i round_to_bf16(__m512 x) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)); }

inline __m512 widen_bf16(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

void round_rows(const RoundRowsArgs& args) {
  const int64_t padded = (args.cols + kBf16Depth - 1) / kBf16Depth * kBf16Depth;
  for (int64_t i = 0; i < args.rows; ++i) {
    const float* src = args.src + i * args.ld_src;
    uint16_t* dst = args.dst + i * args.ld_dst;
    uint16_t* low = args.dst_low ? args.dst_low + i * args.ld_dst : nullptr;
    for (int64_t j = 0; j < padded; j += V::kLanes) {
      const int64_t left = args.cols - j;
      V::reg x = V::zero();
      if (left >= V::kLanes) {
        x = V::load(src + j);
      } else if (left > 0) {
        x = V::load_n(src + j, left, 0.0f);
      }
      const __m256i high = round_to_bf16(x);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + j), high);
      if (!low) continue;
      const __m256i rest = round_to_bf16(V::sub(x, widen_bf16(high)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(low + j), rest);
    }
  }
}
