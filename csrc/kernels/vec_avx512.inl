// Sixteen floats, AVX-512.
struct V {
  static constexpr int kLanes = 16;
  typedef __m512 reg;

  static reg load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, reg x) { _mm512_storeu_ps(p, x); }
  static reg set1(float x) { return _mm512_set1_ps(x); }
  static reg zero() { return _mm512_setzero_ps(); }
  static reg add(reg a, reg b) { return _mm512_add_ps(a, b); }
  static reg sub(reg a, reg b) { return _mm512_sub_ps(a, b); }
  static reg mul(reg a, reg b) { return _mm512_mul_ps(a, b); }
  static reg div(reg a, reg b) { return _mm512_div_ps(a, b); }
  static reg fma(reg a, reg b, reg c) { return _mm512_fmadd_ps(a, b, c); }
  static reg min(reg a, reg b) { return _mm512_min_ps(a, b); }
  static reg max(reg a, reg b) { return _mm512_max_ps(a, b); }
  static reg abs(reg a) { return _mm512_andnot_ps(set1(-0.0f), a); }
  static reg copysign(reg magnitude, reg sign) {
    return _mm512_or_ps(magnitude, _mm512_and_ps(set1(-0.0f), sign));
  }
  static reg round(reg x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // x * 2^n for integral n in [-126, 127].
  static reg scale_by_power(reg x, reg n) { return _mm512_scalef_ps(x, n); }
  // The bfloat16 of even (PARITY 0) or odd position of sixteen neighbouring pairs.
  template <int PARITY>
  static reg load_bf16(const uint16_t* p) {
    const __m512i pairs = _mm512_loadu_si512(p);
    return _mm512_castsi512_ps(
        PARITY == 0 ? _mm512_slli_epi32(pairs, 16)
                    : _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  }
  // float(sum[i] - zero * correction[i])
  static reg from_int(const int32_t* sum, const int32_t* correction, int32_t zero) {
    const __m512i product =
        _mm512_mullo_epi32(_mm512_loadu_si512(correction), _mm512_set1_epi32(zero));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(sum), product));
  }
  // round(x) + zero, clamped to [0, 255].
  static void store_u8(uint8_t* p, reg x, int32_t zero) {
    const __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(zero));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm512_cvtusepi32_epi8(_mm512_max_epi32(q, _mm512_setzero_si512())));
  }
  // Integers of four vectors as int8, those of one lane side by side.
  static void store_quads(int8_t* p, const reg (&x)[4]) {
    const __m512i byte = _mm512_set1_epi32(255);
    const auto at = [&](int t) { return _mm512_and_si512(_mm512_cvtps_epi32(x[t]), byte); };
    const __m512i low = _mm512_or_si512(at(0), _mm512_slli_epi32(at(1), 8));
    const __m512i high = _mm512_or_si512(at(2), _mm512_slli_epi32(at(3), 8));
    _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  // The first n < kLanes elements, `fill` in the rest.
  static reg load_n(const float* p, int64_t n, float fill) {
    return _mm512_mask_loadu_ps(set1(fill), first(n), p);
  }
  static void store_n(float* p, reg x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x); }
  // The first n < kLanes elements of x, 0 in the rest.
  static reg keep_n(reg x, int64_t n) { return _mm512_maskz_mov_ps(first(n), x); }
  static float sum(reg x) {
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static float maximum(reg x) {
    const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }

 private:
  static __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
};

// dst[c * 16 + r] = src[r * ld + c] for 16 rows and 16 columns.
inline void transpose_16x16(const float* src, int64_t ld, float* dst) {
  __m512 r[16];
  __m512 t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(src + i * ld);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  // r[4 g + j] holds, in 128-bit lane q, column 4 q + j of rows 4 g .. 4 g + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 lo01 = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x44);
    const __m512 hi01 = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xee);
    const __m512 lo23 = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x44);
    const __m512 hi23 = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xee);
    _mm512_storeu_ps(dst + (0 + j) * 16, _mm512_shuffle_f32x4(lo01, lo23, 0x88));
    _mm512_storeu_ps(dst + (4 + j) * 16, _mm512_shuffle_f32x4(lo01, lo23, 0xdd));
    _mm512_storeu_ps(dst + (8 + j) * 16, _mm512_shuffle_f32x4(hi01, hi23, 0x88));
    _mm512_storeu_ps(dst + (12 + j) * 16, _mm512_shuffle_f32x4(hi01, hi23, 0xdd));
  }
}
