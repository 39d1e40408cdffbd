// Four-byte dot products, VPDPBUSD on 256 bits.
struct Dot {
  static constexpr int kRows = 6;
  static constexpr int kPanels = 1;
  static constexpr int32_t kZero = 0;
  struct sums {
    __m256i lo, hi;
  };
  typedef sums weights;
  typedef __m256i values;

  static sums zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static weights load(const int8_t* b) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + 32))};
  }
  static values broadcast(const uint8_t* a) {
    int32_t word;
    __builtin_memcpy(&word, a, sizeof(word));
    return _mm256_set1_epi32(word);
  }
  static sums add(sums s, values a, weights b) {
    return {_mm256_dpbusd_avx_epi32(s.lo, a, b.lo), _mm256_dpbusd_avx_epi32(s.hi, a, b.hi)};
  }
  static void store(int32_t* dst, sums s) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), s.lo);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + 8), s.hi);
  }
};
