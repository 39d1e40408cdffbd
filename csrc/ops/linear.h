// Linear layers on pre-packed weights.
#pragma once

#include <cstdint>

#include "base/aligned.h"
#include "kernels/abi.h"
#include "ops/context.h"
#include "ops/packed_linear.h"

namespace tokprune {

struct Residual {
  const float* data = nullptr;
  int64_t ld = 0;
  const int32_t* rows = nullptr;  // row of `data` for every output row; null = the same row
};

// Where one thread keeps a block of activations in the operand type of a layer's product.
class OperandScratch {
 public:
  OperandScratch() = default;
  // For layers of up to max_inputs inputs.
  OperandScratch(Precision precision, int64_t max_inputs);

  // Rows of the input of `layer` that fit at once.
  static int64_t rows_that_fit(const PackedLinear& layer);

  template <class T>
  T* values() const {
    return reinterpret_cast<T*>(values_.data());
  }
  float* scale() const { return scale_.data(); }
  int32_t* zero() const { return zero_.data(); }

 private:
  AlignedArray<std::byte> values_;
  AlignedArray<float> scale_;
  AlignedArray<int32_t> zero_;
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
  const OperandScratch* operands = nullptr;  // [threads]; unused by float32 layers
};
void linear(const Context& context, const PackedLinear& layer, const LinearArgs& args);

}  // namespace tokprune
