// Four-byte dot products by widening to 16 bits: VPMADDUBSW would saturate.
struct Dot {
  static constexpr int kRows = 2;
  static constexpr int kPanels = 1;
  // Four columns each; a column's sum is split over two neighbours.
  struct sums {
    __m256i of[4];
  };
  struct weights {
    __m256i of[4];
  };
  typedef __m256i values;

  static sums zero() {
    const __m256i z = _mm256_setzero_si256();
    return {{z, z, z, z}};
  }
  static weights load(const int8_t* b) {
    weights w;
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + 16 * q));
      w.of[q] = _mm256_cvtepi8_epi16(bytes);
    }
    return w;
  }
  static values broadcast(const uint8_t* a) {
    int32_t word;
    __builtin_memcpy(&word, a, sizeof(word));
    return _mm256_cvtepu8_epi16(_mm_set1_epi32(word));
  }
  static sums add(sums s, values a, weights b) {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      s.of[q] = _mm256_add_epi32(s.of[q], _mm256_madd_epi16(a, b.of[q]));
    }
    return s;
  }
  static void store(int32_t* dst, sums s) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      // Columns 0 1 4 5 | 2 3 6 7 of this half.
      const __m256i pairs = _mm256_hadd_epi32(s.of[2 * h], s.of[2 * h + 1]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + 8 * h),
                          _mm256_permute4x64_epi64(pairs, 0xd8));
    }
  }
};
