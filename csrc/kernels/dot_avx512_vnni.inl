// Four-byte dot products, VPDPBUSD on 512 bits.
struct Dot {
  static constexpr int kRows = 12;
  static constexpr int kPanels = 2;
  static constexpr int32_t kZero = 0;
  typedef __m512i sums;
  typedef __m512i weights;
  typedef __m512i values;

  static sums zero() { return _mm512_setzero_si512(); }
  static weights load(const int8_t* b) { return _mm512_loadu_si512(b); }
  static values broadcast(const uint8_t* a) {
    int32_t word;
    __builtin_memcpy(&word, a, sizeof(word));
    return _mm512_set1_epi32(word);
  }
  static sums add(sums s, values a, weights b) { return _mm512_dpbusd_epi32(s, a, b); }
  static void store(int32_t* dst, sums s) { _mm512_storeu_si512(dst, s); }
};
