// Four-byte dot products by widening to 16 bits, for AVX-512 without VNNI.
struct Dot {
  static constexpr int kRows = 6;
  static constexpr int kPanels = 2;
  static constexpr int32_t kZero = 0;
  // Eight columns each; a column's sum is split over two neighbours.
  struct sums {
    __m512i lo, hi;
  };
  typedef sums weights;
  typedef __m512i values;

  static sums zero() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
  static weights load(const int8_t* b) {
    const auto* bytes = reinterpret_cast<const __m256i*>(b);
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(bytes)),
            _mm512_cvtepi8_epi16(_mm256_loadu_si256(bytes + 1))};
  }
  static values broadcast(const uint8_t* a) {
    int32_t word;
    __builtin_memcpy(&word, a, sizeof(word));
    return _mm512_cvtepu8_epi16(_mm256_set1_epi32(word));
  }
  static sums add(sums s, values a, weights b) {
    return {_mm512_add_epi32(s.lo, _mm512_madd_epi16(a, b.lo)),
            _mm512_add_epi32(s.hi, _mm512_madd_epi16(a, b.hi))};
  }
  static void store(int32_t* dst, sums s) {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd =
        _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    _mm512_storeu_si512(dst, _mm512_add_epi32(_mm512_permutex2var_epi32(s.lo, even, s.hi),
                                              _mm512_permutex2var_epi32(s.lo, odd, s.hi)));
  }
};
