// Four-byte dot products with VPMADDUBSW, exactly: activations less 128 are signed bytes, the sign
// moves to the weight, and 2 x 128 x 127 fits the 16 bits in which the instruction saturates.
struct Dot {
  static constexpr int kRows = 2;
  static constexpr int kPanels = 2;
  static constexpr int32_t kZero = 128;
  struct sums {
    __m256i lo, hi;
  };
  typedef sums weights;
  struct values {
    __m256i sign, magnitude;
  };

  static sums zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static weights load(const int8_t* b) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + 32))};
  }
  static values broadcast(const uint8_t* a) {
    int32_t word;
    __builtin_memcpy(&word, a, sizeof(word));
    const __m256i centred = _mm256_xor_si256(_mm256_set1_epi32(word), _mm256_set1_epi8(-128));
    return {centred, _mm256_abs_epi8(centred)};
  }
  static sums add(sums s, values a, weights b) {
    return {_mm256_add_epi32(s.lo, product(a, b.lo)), _mm256_add_epi32(s.hi, product(a, b.hi))};
  }
  static void store(int32_t* dst, sums s) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), s.lo);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + 8), s.hi);
  }

 private:
  static __m256i product(values a, __m256i b) {
    const __m256i pairs = _mm256_maddubs_epi16(a.magnitude, _mm256_sign_epi8(b, a.sign));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
};
