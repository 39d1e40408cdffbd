// Four floats in the compiler's portable vector type: runs on any x86-64, multiply then add.
struct V {
  static constexpr int kLanes = 4;
  typedef float reg __attribute__((vector_size(16)));
  typedef int32_t ireg __attribute__((vector_size(16)));

  static reg load(const float* p) {
    reg x;
    __builtin_memcpy(&x, p, sizeof(x));
    return x;
  }
  static void store(float* p, reg x) { __builtin_memcpy(p, &x, sizeof(x)); }
  static reg set1(float x) { return reg{x, x, x, x}; }
  static reg zero() { return set1(0.0f); }
  static reg add(reg a, reg b) { return a + b; }
  static reg sub(reg a, reg b) { return a - b; }
  static reg mul(reg a, reg b) { return a * b; }
  static reg div(reg a, reg b) { return a / b; }
  static reg fma(reg a, reg b, reg c) { return a * b + c; }
  static reg min(reg a, reg b) { return a < b ? a : b; }
  static reg max(reg a, reg b) { return a > b ? a : b; }
  static reg abs(reg a) { return as_float(as_int(a) & 0x7fffffff); }
  static reg copysign(reg magnitude, reg sign) {
    return as_float(as_int(magnitude) | (as_int(sign) & static_cast<int32_t>(0x80000000)));
  }
  // Round half to even, for |x| < 2^22.
  static reg round(reg x) {
    const reg magic = set1(12582912.0f);
    return (x + magic) - magic;
  }
  // x * 2^n for integral n in [-126, 127].
  static reg scale_by_power(reg x, reg n) {
    return x * as_float((__builtin_convertvector(n, ireg) + 127) << 23);
  }
  // The bfloat16 of even (PARITY 0) or odd position of four neighbouring pairs.
  template <int PARITY>
  static reg load_bf16(const uint16_t* p) {
    ireg pairs;
    __builtin_memcpy(&pairs, p, sizeof(pairs));
    return as_float(PARITY == 0 ? pairs << 16 : pairs & static_cast<int32_t>(0xffff0000));
  }
  // float(sum[i] - zero * correction[i])
  static reg from_int(const int32_t* sum, const int32_t* correction, int32_t zero) {
    ireg x;
    for (int i = 0; i < kLanes; ++i) x[i] = sum[i] - zero * correction[i];
    return __builtin_convertvector(x, reg);
  }
  // round(x) + zero, clamped to [0, 255].
  static void store_u8(uint8_t* p, reg x, int32_t zero) {
    const reg q = min(max(round(x) + static_cast<float>(zero), set1(0.0f)), set1(255.0f));
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<uint8_t>(q[i]);
  }
  // Integers of four vectors as int8, those of one lane side by side.
  static void store_quads(int8_t* p, const reg (&x)[4]) {
    for (int i = 0; i < kLanes; ++i) {
      for (int t = 0; t < 4; ++t) p[4 * i + t] = static_cast<int8_t>(x[t][i]);
    }
  }
  // The first n < kLanes elements, `fill` in the rest.
  static reg load_n(const float* p, int64_t n, float fill) {
    reg x = set1(fill);
    for (int64_t i = 0; i < n; ++i) x[i] = p[i];
    return x;
  }
  static void store_n(float* p, reg x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = x[i];
  }
  // The first n < kLanes elements of x, 0 in the rest.
  static reg keep_n(reg x, int64_t n) {
    for (int64_t i = n; i < kLanes; ++i) x[i] = 0.0f;
    return x;
  }
  static float sum(reg x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static float maximum(reg x) {
    const float a = x[0] > x[2] ? x[0] : x[2];
    const float b = x[1] > x[3] ? x[1] : x[3];
    return a > b ? a : b;
  }

 private:
  static ireg as_int(reg x) { return reinterpret_cast<ireg>(x); }
  static reg as_float(ireg x) { return reinterpret_cast<reg>(x); }
};

// dst[c * 16 + r] = src[r * ld + c] for 16 rows and 16 columns.
inline void transpose_16x16(const float* src, int64_t ld, float* dst) {
  for (int r = 0; r < 16; ++r) {
    for (int c = 0; c < 16; ++c) dst[c * 16 + r] = src[r * ld + c];
  }
}
