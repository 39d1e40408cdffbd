#include "ops/attention_product.h"

namespace tokprune {

using kernels::Epilogue;
using kernels::EpilogueArgs;
using kernels::kPanel;

int attention_terms(const kernels::KernelTable& kernels, Precision precision) {
  switch (precision) {
    case Precision::kBf16: return kernels.gemm_bf16 ? 1 : 0;
    case Precision::kBf16x3: return 2;
    case Precision::kFp32:
    case Precision::kInt8: break;
  }
  return 0;
}

void HeadProduct::pack_transposed(const float* src, int64_t ld) const {
  if (terms == 0) {
    return kernels.pack_transposed({.src = src, .ld_src = ld, .dst = packed, .n = n, .k = k});
  }
  const Bf16 b = packed_terms();
  kernels.pack_transposed_bf16(
      {.src = src, .ld_src = ld, .dst = b.high, .dst_low = b.low, .n = n, .k = k});
}

void HeadProduct::pack_rows(const float* src, int64_t ld) const {
  if (terms == 0) {
    return kernels.pack_rows({.src = src, .ld_src = ld, .dst = packed, .n = n, .k = k});
  }
  const Bf16 b = packed_terms();
  kernels.pack_rows_bf16(
      {.src = src, .ld_src = ld, .dst = b.high, .dst_low = b.low, .n = n, .k = k});
}

void HeadProduct::multiply(const float* src, int64_t ld, int64_t m, float* c, int64_t ldc,
                           const float* row_scale) const {
  const int64_t panels = ceil_div(n, kPanel);
  EpilogueArgs epilogue{};
  epilogue.kind = row_scale ? Epilogue::kRowScale : Epilogue::kNone;
  epilogue.row_scale = row_scale;
  if (terms == 0) {
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
  const int64_t depth = round_up(k, kernels::kBf16Depth);
  const Bf16 a = rounded_terms(m);
  const Bf16 b = packed_terms();
  kernels.round_rows({.src = src,
                      .ld_src = ld,
                      .dst = a.high,
                      .dst_low = a.low,
                      .ld_dst = depth,
                      .rows = m,
                      .cols = k});
  kernels.gemm_bf16({.a = a.high,
                     .a_low = a.low,
                     .lda = depth,
                     .b = b.high,
                     .b_low = b.low,
                     .b_panel_stride = depth * kPanel,
                     .c = c,
                     .ldc = ldc,
                     .m = m,
                     .panels = panels,
                     .k = depth,
                     .epilogue = epilogue});
}

}  // namespace tokprune
