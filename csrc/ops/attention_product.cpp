#include "ops/attention_product.h"

#include <algorithm>

namespace tokprune {

using kernels::Epilogue;
using kernels::EpilogueArgs;
using kernels::kPanel;

// The same on every level, or results would differ.
static constexpr int64_t kInt8Rows = 64;
// Up to which sums fit, see GemmInt8Args.
static constexpr int64_t kInt8MostRows = 1 << 16;

Precision attention_precision(const kernels::KernelTable& kernels, Precision precision,
                              int64_t rows) {
  const bool widened = precision == Precision::kBf16 && !kernels.gemm_bf16;
  const bool unsuited = precision == Precision::kInt8 && (rows < kInt8Rows || rows > kInt8MostRows);
  return widened || unsuited ? Precision::kFp32 : precision;
}

int64_t HeadProduct::depth() const {
  switch (precision) {
    case Precision::kFp32: return k;
    case Precision::kInt8: return round_up(k, kernels.tiles ? kernels::kInt8Depth : 4);
    case Precision::kBf16:
    case Precision::kBf16x3: break;
  }
  return round_up(k, kernels::kBf16Depth);
}

void HeadProduct::pack_transposed(const float* src, int64_t ld) const {
  if (precision == Precision::kFp32) {
    return kernels.pack_transposed({.src = src, .ld_src = ld, .dst = packed, .n = n, .k = k});
  }
  if (precision == Precision::kInt8) {
    for (int64_t column = 0; column < n; column += kPanel) {
      kernels.pack_transposed({.src = src + column * ld,
                               .ld_src = ld,
                               .dst = rounded,
                               .n = std::min(kPanel, n - column),
                               .k = k});
      pack_int8(rounded, kPanel, column);
    }
    return;
  }
  const Bf16 b = packed_terms();
  kernels.pack_transposed_bf16(
      {.src = src, .ld_src = ld, .dst = b.high, .dst_low = b.low, .n = n, .k = k});
}

void HeadProduct::pack_rows(const float* src, int64_t ld) const {
  if (precision == Precision::kFp32) {
    return kernels.pack_rows({.src = src, .ld_src = ld, .dst = packed, .n = n, .k = k});
  }
  if (precision == Precision::kInt8) {
    for (int64_t column = 0; column < n; column += kPanel) pack_int8(src + column, ld, column);
    return;
  }
  const Bf16 b = packed_terms();
  kernels.pack_rows_bf16(
      {.src = src, .ld_src = ld, .dst = b.high, .dst_low = b.low, .n = n, .k = k});
}

// The panel that begins at this column of B; src[k, 16] is that part of it.
void HeadProduct::pack_int8(const float* src, int64_t ld, int64_t column) const {
  const Int8 b = packed_int8();
  kernels.quantize_panel({.src = src,
                          .ld_src = ld,
                          .dst = b.panels + column * depth(),
                          .scale = b.scale + column,
                          .sum = b.sum + column,
                          .k = k,
                          .n = std::min(kPanel, n - column),
                          .depth = depth()});
}

void HeadProduct::multiply(const float* src, int64_t ld, int64_t m, float* c, int64_t ldc,
                           const float* row_scale) const {
  if (precision == Precision::kInt8) return multiply_int8(src, ld, m, c, ldc, row_scale);
  const int64_t panels = ceil_div(n, kPanel);
  EpilogueArgs epilogue{};
  epilogue.kind = row_scale ? Epilogue::kRowScale : Epilogue::kNone;
  epilogue.row_scale = row_scale;
  if (precision == Precision::kFp32) {
    return kernels.gemm({.a = src,
                         .lda = ld,
                         .b = packed,
                         .b_panel_stride = k * kPanel,
                         .c = c,
                         .ldc = ldc,
                         .m = m,
                         .panels = panels,
                         .k = k,
                         .accumulate = false,
                         .epilogue = epilogue});
  }
  const Bf16 a = rounded_terms(m);
  const Bf16 b = packed_terms();
  kernels.round_rows({.src = src,
                      .ld_src = ld,
                      .dst = a.high,
                      .dst_low = a.low,
                      .ld_dst = depth(),
                      .rows = m,
                      .cols = k});
  kernels.gemm_bf16({.a = a.high,
                     .a_low = a.low,
                     .lda = depth(),
                     .b = b.high,
                     .b_low = b.low,
                     .b_panel_stride = depth() * kPanel,
                     .c = c,
                     .ldc = ldc,
                     .m = m,
                     .panels = panels,
                     .k = depth(),
                     .epilogue = epilogue});
}

void HeadProduct::multiply_int8(const float* src, int64_t ld, int64_t m, float* c, int64_t ldc,
                                const float* row_scale) const {
  auto* a = reinterpret_cast<uint8_t*>(rounded);
  const int64_t lda = round_up(k, kernels::kInt8Depth);
  float scale[kMaxQueryBlock];
  int32_t zero[kMaxQueryBlock];
  if (row_scale) {
    kernels.quantize_probabilities(
        {.src = src, .ld_src = ld, .dst = a, .ld_dst = lda, .rows = m, .cols = k});
    for (int64_t i = 0; i < m; ++i) {
      scale[i] = row_scale[i] / 255.0f;
      zero[i] = 0;
    }
  } else {
    kernels.quantize_rows({.src = src,
                           .ld_src = ld,
                           .dst = a,
                           .ld_dst = lda,
                           .scale = scale,
                           .zero = zero,
                           .rows = m,
                           .cols = k});
  }
  const Int8 b = packed_int8();
  kernels.gemm_int8({.a = a,
                     .lda = lda,
                     .a_scale = scale,
                     .a_zero = zero,
                     .b = b.panels,
                     .b_panel_stride = depth() * kPanel,
                     .b_scale = b.scale,
                     .b_sum = b.sum,
                     .c = c,
                     .ldc = ldc,
                     .m = m,
                     .panels = ceil_div(n, kPanel),
                     .k = depth(),
                     .epilogue = {.kind = Epilogue::kNone}});
}

}  // namespace tokprune
