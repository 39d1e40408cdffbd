// Sixteen floats in two registers, AVX2 + FMA. Sixteen, not eight, so that sums over lanes have the
// same order as with AVX-512: both levels compute the same bits.
struct V {
  static constexpr int kLanes = 16;
  struct reg {
    __m256 lo, hi;
  };

  static reg load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, reg x) {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
  }
  static reg set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static reg zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static reg add(reg a, reg b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  static reg sub(reg a, reg b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
  static reg mul(reg a, reg b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  static reg div(reg a, reg b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
  static reg fma(reg a, reg b, reg c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  static reg min(reg a, reg b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
  static reg max(reg a, reg b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
  static reg abs(reg a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
  }
  static reg copysign(reg magnitude, reg sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(magnitude.lo, _mm256_and_ps(bit, sign.lo)),
            _mm256_or_ps(magnitude.hi, _mm256_and_ps(bit, sign.hi))};
  }
  static reg round(reg x) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.lo, kNearest), _mm256_round_ps(x.hi, kNearest)};
  }
  // x * 2^n for integral n in [-126, 127].
  static reg scale_by_power(reg x, reg n) { return mul(x, {power(n.lo), power(n.hi)}); }
  // The bfloat16 of even (PARITY 0) or odd position of sixteen neighbouring pairs.
  template <int PARITY>
  static reg load_bf16(const uint16_t* p) {
    return {widen<PARITY>(p), widen<PARITY>(p + 16)};
  }
  // float(sum[i] - zero * correction[i])
  static reg from_int(const int32_t* sum, const int32_t* correction, int32_t zero) {
    return {from_int_8(sum, correction, zero), from_int_8(sum + 8, correction + 8, zero)};
  }
  // round(x) + zero, clamped to [0, 255].
  static void store_u8(uint8_t* p, reg x, int32_t zero) {
    const __m256i shift = _mm256_set1_epi32(zero);
    const __m256i words = _mm256_packs_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(x.lo), shift),
                                             _mm256_add_epi32(_mm256_cvtps_epi32(x.hi), shift));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(p),
        _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
  }
  // Integers of four vectors as int8, those of one lane side by side.
  static void store_quads(int8_t* p, const reg (&x)[4]) {
    store_8_quads(p, x[0].lo, x[1].lo, x[2].lo, x[3].lo);
    store_8_quads(p + 32, x[0].hi, x[1].hi, x[2].hi, x[3].hi);
  }
  // The first n < kLanes elements, `fill` in the rest.
  static reg load_n(const float* p, int64_t n, float fill) {
    return {load_8(p, n, fill), n > 8 ? load_8(p + 8, n - 8, fill) : _mm256_set1_ps(fill)};
  }
  static void store_n(float* p, reg x, int64_t n) {
    _mm256_maskstore_ps(p, first(n), x.lo);
    if (n > 8) _mm256_maskstore_ps(p + 8, first(n - 8), x.hi);
  }
  // The first n < kLanes elements of x, 0 in the rest.
  static reg keep_n(reg x, int64_t n) {
    return {_mm256_and_ps(x.lo, _mm256_castsi256_ps(first(n))),
            _mm256_and_ps(x.hi, _mm256_castsi256_ps(first(n - 8)))};
  }
  static float sum(reg x) {
    const __m256 h = _mm256_add_ps(x.lo, x.hi);
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static float maximum(reg x) {
    const __m256 h = _mm256_max_ps(x.lo, x.hi);
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }

 private:
  static void store_8_quads(int8_t* p, __m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256i byte = _mm256_set1_epi32(255);
    const auto low = [&](__m256 x) { return _mm256_and_si256(_mm256_cvtps_epi32(x), byte); };
    const __m256i ab = _mm256_or_si256(low(a), _mm256_slli_epi32(low(b), 8));
    const __m256i cd = _mm256_or_si256(low(c), _mm256_slli_epi32(low(d), 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm256_or_si256(ab, _mm256_slli_epi32(cd, 16)));
  }
  static __m256 power(__m256 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  template <int PARITY>
  static __m256 widen(const uint16_t* p) {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_castsi256_ps(
        PARITY == 0 ? _mm256_slli_epi32(pairs, 16)
                    : _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
  }
  static __m256 from_int_8(const int32_t* sum, const int32_t* correction, int32_t zero) {
    const __m256i s = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sum));
    const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(correction));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(s, _mm256_mullo_epi32(c, _mm256_set1_epi32(zero))));
  }
  static __m256i first(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static __m256 load_8(const float* p, int64_t n, float fill) {
    const __m256i keep = first(n);
    return _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, keep),
                            _mm256_castsi256_ps(keep));
  }
};

inline void transpose_8x8(const float* src, int64_t ld, float* dst) {
  __m256 r[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(src + i * ld);
  __m256 t[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  __m256 u[8];
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(dst + i * 16, _mm256_permute2f128_ps(u[i], u[i + 4], 0x20));
    _mm256_storeu_ps(dst + (i + 4) * 16, _mm256_permute2f128_ps(u[i], u[i + 4], 0x31));
  }
}

// dst[c * 16 + r] = src[r * ld + c] for 16 rows and 16 columns.
inline void transpose_16x16(const float* src, int64_t ld, float* dst) {
  for (int r = 0; r < 16; r += 8) {
    for (int c = 0; c < 16; c += 8) transpose_8x8(src + r * ld + c, ld, dst + c * 16 + r);
  }
}
