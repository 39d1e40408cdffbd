// Packing matrices into panels [n / 16][k][16]. Contracts: PackTransposedArgs, PackRowsArgs.

void pack_transposed(const PackTransposedArgs& p) {
  for (int64_t n0 = 0; n0 < p.n; n0 += kPanel) {
    const int64_t lanes = p.n - n0 < kPanel ? p.n - n0 : kPanel;
    const float* src = p.src + n0 * p.ld_src;
    float* dst = p.dst + n0 * p.k;
    int64_t kk = 0;
    if (lanes == kPanel) {
      for (; kk + kPanel <= p.k; kk += kPanel)
        transpose_16x16(src + kk, p.ld_src, dst + kk * kPanel);
    }
    for (; kk < p.k; ++kk) {
      for (int64_t j = 0; j < lanes; ++j) dst[kk * kPanel + j] = src[j * p.ld_src + kk];
      for (int64_t j = lanes; j < kPanel; ++j) dst[kk * kPanel + j] = 0.0f;
    }
  }
}

void pack_rows(const PackRowsArgs& p) {
  for (int64_t n0 = 0; n0 < p.n; n0 += kPanel) {
    const int64_t lanes = p.n - n0 < kPanel ? p.n - n0 : kPanel;
    float* dst = p.dst + n0 * p.k;
    for (int64_t kk = 0; kk < p.k; ++kk) {
      const float* src = p.src + kk * p.ld_src + n0;
      for (int64_t j = 0; j < lanes; ++j) dst[kk * kPanel + j] = src[j];
      for (int64_t j = lanes; j < kPanel; ++j) dst[kk * kPanel + j] = 0.0f;
    }
  }
}
