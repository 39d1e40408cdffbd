// Four-byte dot products in plain C.
struct Dot {
  static constexpr int kRows = 2;
  static constexpr int kPanels = 1;
  static constexpr int32_t kZero = 0;
  struct sums {
    int32_t of[kPanel];
  };
  typedef const int8_t* weights;
  typedef const uint8_t* values;

  static sums zero() { return {}; }
  static weights load(const int8_t* b) { return b; }
  static values broadcast(const uint8_t* a) { return a; }
  static sums add(sums s, values a, weights b) {
    for (int j = 0; j < kPanel; ++j) {
      for (int t = 0; t < 4; ++t) s.of[j] += a[t] * b[4 * j + t];
    }
    return s;
  }
  static void store(int32_t* dst, sums s) { __builtin_memcpy(dst, s.of, sizeof(s.of)); }
};
