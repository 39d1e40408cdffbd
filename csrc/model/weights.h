// The packed, immutable weights of an encoder. Shared by every call.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "model/config.h"
#include "ops/context.h"
#include "ops/linear.h"

namespace tokprune {

// A float32, C-contiguous tensor owned by the caller for the duration of packing.
struct TensorView {
  const float* data = nullptr;
  std::vector<int64_t> shape;
};
using TensorMap = std::map<std::string, TensorView, std::less<>>;

struct NormWeights {
  AlignedArray<float> gamma;
  AlignedArray<float> beta;
};

struct LayerWeights {
  PackedLinear qkv;  // Q at column 0, K at part_stride, V at 2 * part_stride
  PackedLinear output;
  NormWeights attention_norm;
  PackedLinear ffn_in;
  PackedLinear ffn_out;
  NormWeights ffn_norm;
};

struct DenseWeights {
  PackedLinear layer;
  kernels::Epilogue activation = kernels::Epilogue::kBias;
  int64_t outputs = 0;
};

struct EncoderWeights {
  AlignedArray<float> word;        // [vocab_size, embedding_size]
  AlignedArray<float> position;    // [rows, embedding_size]
  AlignedArray<float> token_type;  // [type_vocab_size, embedding_size], or empty
  NormWeights embedding_norm;
  PackedLinear embedding_projection;  // empty unless embedding_size != hidden
  AlignedArray<float> relative_bias;  // [heads, 2 * max_positions - 1], or empty
  kernels::Epilogue ffn_activation = kernels::Epilogue::kBias;
  std::vector<LayerWeights> layers;
  std::vector<DenseWeights> dense;  // after pooling
  DenseWeights head_dense;          // outputs == 0 if absent
  DenseWeights head_out;            // outputs == 0 if there is no head

  // Throws std::invalid_argument naming a tensor that is missing or misshapen, with the shape found
  // and the shape expected.
  EncoderWeights(const Context& context, const EncoderConfig& config, const TensorMap& tensors);

  int64_t bytes() const;
};

}  // namespace tokprune
