// The interface of tile_registers.inl in AVX-512, to test tile kernels on CPUs without tiles. It
// follows the operation sections of Intel's manual for TDPBF16PS and TDPBUSD.

struct Tiles {
  template <int T>
  void zero() {
    __builtin_memset(tile[T], 0, sizeof(tile[T]));
  }
  template <int T>
  void load(const char* from, int64_t stride) {
    for (int i = 0; i < 16; ++i) __builtin_memcpy(tile[T][i], from + i * stride, 64);
  }
  template <int T>
  void store(char* to, int64_t stride) {
    for (int i = 0; i < 16; ++i) __builtin_memcpy(to + i * stride, tile[T][i], 64);
  }

  // Products of even and of odd k are two chains of fused multiply-adds that start at zero; their
  // sum is added to C. Round to nearest even, subnormal numbers count as zero.
  template <int C, int A, int B>
  [[gnu::noinline]] void dot_bf16() {
    constexpr int kRows = 8;
    const __m512i low_half = _mm512_set1_epi32(0xffff);
    for (int row = 0; row < 16; row += kRows) {
      __m512 even[kRows];
      __m512 odd[kRows];
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) even[i] = odd[i] = _mm512_setzero_ps();
      for (int k = 0; k < 16; ++k) {
        const __m512i pairs = _mm512_load_si512(tile[B][k]);
        const __m512i even_only = _mm512_and_si512(low_half, pairs);
        const __m512i odd_only = _mm512_andnot_si512(low_half, pairs);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          const uint32_t a = word<A>(row + i, k);
          even[i] = add_product(even[i], a & 0xffff, even_only);
          odd[i] = add_product(odd[i], a & 0xffff0000, odd_only);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        unsigned char* c = tile[C][row + i];
        const __m512 sum = flush(_mm512_add_ps(even[i], odd[i]));
        _mm512_store_ps(c, flush(_mm512_add_ps(flush(_mm512_load_ps(c)), sum)));
      }
    }
  }

  template <int C, int A, int B>
  [[gnu::noinline]] void dot_u8s8() {
    for (int i = 0; i < 16; ++i) {
      __m512i sums = _mm512_load_si512(tile[C][i]);
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) {
        const __m512i a = _mm512_set1_epi32(static_cast<int>(word<A>(i, k)));
        sums = _mm512_dpbusd_epi32(sums, a, _mm512_load_si512(tile[B][k]));
      }
      _mm512_store_si512(tile[C][i], sums);
    }
  }

 private:
  template <int T>
  uint32_t word(int row, int index) const {
    uint32_t value;
    __builtin_memcpy(&value, tile[T][row] + 4 * index, sizeof(value));
    return value;
  }
  // VDPBF16PS rounds and flushes as tiles do, but chains the two products of a pair: one of them is
  // 0 x 0 here.
  static __m512 add_product(__m512 sum, uint32_t a, __m512i b) {
    const __m512i all = _mm512_set1_epi32(static_cast<int>(a));
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(all), reinterpret_cast<__m512bh>(b));
  }
  static __m512 flush(__m512 x) {
    const __mmask16 normal = _mm512_cmp_ps_mask(V::abs(x), V::set1(0x1p-126f), _CMP_NLT_UQ);
    return _mm512_mask_mov_ps(_mm512_and_ps(x, V::set1(-0.0f)), normal, x);
  }

  alignas(64) unsigned char tile[8][16][64];
};
