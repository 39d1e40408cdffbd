// Linear layers on pre-packed weights.
#pragma once

#include <cstdint>

#include "base/aligned.h"
#include "kernels/abi.h"
#include "ops/context.h"

namespace tokprune {

// y = x W^T + b with W packed into panels of 16 output columns, [outputs / 16][inputs][16].
// Several weights of the same input width can share one PackedLinear, each starting at a panel.
struct PackedLinear {
  int64_t inputs = 0;
  int64_t outputs = 0;  // a multiple of 16; columns without a weight compute 0
  AlignedArray<float> weight;
  AlignedArray<float> bias;  // [outputs]

  PackedLinear() = default;
  PackedLinear(int64_t columns_in, int64_t columns_out);

  // Packs weight[rows, inputs] (Hugging Face layout, row-major) and bias[rows] (null = zero) from
  // output column `column`, a multiple of 16.
  void set(const Context& context, int64_t column, int64_t rows, const float* weight,
           const float* bias);

  int64_t panels() const { return outputs / kernels::kPanel; }
  bool empty() const { return inputs == 0; }
};

struct Residual {
  const float* data = nullptr;
  int64_t ld = 0;
  const int32_t* rows = nullptr;  // row of `data` for every output row; null = the same row
};

// dst[rows, 16 * panels] = epilogue(src[rows, inputs] W^T) for panels [panel_begin, panel_end) of
// `layer`; column 0 of dst is the first column of panel_begin. Panel range -1 = all.
struct LinearArgs {
  const float* src = nullptr;
  int64_t ld_src = 0;
  float* dst = nullptr;
  int64_t ld_dst = 0;
  int64_t rows = 0;
  kernels::Epilogue epilogue = kernels::Epilogue::kBias;
  Residual residual = {};
  int64_t panel_begin = 0;
  int64_t panel_end = -1;
};
void linear(const Context& context, const PackedLinear& layer, const LinearArgs& args);

}  // namespace tokprune
