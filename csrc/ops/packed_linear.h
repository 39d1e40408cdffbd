// The weights of a linear layer in the form that the kernels read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/arena.h"
#include "kernels/abi.h"
#include "ops/context.h"

namespace tokprune {

// The arithmetic of a layer's products. Sums, biases and everything else are float32.
enum class Precision : uint8_t {
  kFp32,
  kBf16,    // weights in bfloat16; activations too where the level has bfloat16 products
  kInt8,    // int8 weights per output column, uint8 activations per row, exact sums
  kBf16x3,  // float32 split into two bfloat16 terms; needs matrix tiles
};

// y = x W^T + b with W packed into panels of 16 output columns (layouts: kernels/abi.h). Several
// weights of the same input width can share one PackedLinear, each starting at a panel.
struct PackedLinear {
  Precision precision = Precision::kFp32;
  int64_t inputs = 0;
  int64_t depth = 0;    // inputs, padded with zeros to what the layout needs
  int64_t outputs = 0;  // a multiple of 16; columns without a weight compute 0
  std::span<std::byte> weight;
  std::span<std::byte> weight_low;  // kBf16x3: the second terms
  std::span<float> bias;            // [outputs]
  std::span<float> scale;           // [outputs], kInt8
  std::span<int32_t> column_sum;    // [outputs], kInt8

  PackedLinear() = default;
  PackedLinear(Arena& arena, Precision chosen, int64_t columns_in, int64_t columns_out);

  // Packs weight[rows, inputs] (Hugging Face layout, row-major) and bias[rows] (null = zero) from
  // output column `column`, a multiple of 16.
  void set(const Context& context, int64_t column, int64_t rows, const float* weight,
           const float* bias);

  int64_t panels() const { return outputs / kernels::kPanel; }
  bool empty() const { return inputs == 0; }

  template <class T>
  const T* panel(std::span<std::byte> from, int64_t index) const {
    return reinterpret_cast<const T*>(from.data()) + index * panel_stride();
  }
  int64_t panel_stride() const { return depth * kernels::kPanel; }  // elements
};

}  // namespace tokprune
