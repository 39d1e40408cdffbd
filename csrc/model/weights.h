// The packed, immutable weights of an encoder. Shared by every call.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/arena.h"
#include "model/config.h"
#include "ops/context.h"
#include "ops/linear.h"

namespace tokprune {

// A float32, C-contiguous tensor owned by the caller for the duration of packing.
struct TensorView {
  const float* data = nullptr;  // null: only the shape is known, the values are packed already
  std::vector<int64_t> shape;
};
using TensorMap = std::map<std::string, TensorView, std::less<>>;

// "[2, 3]"; an extent of -1 reads "any".
std::string shape_text(const std::vector<int64_t>& shape);

struct NormWeights {
  std::span<float> gamma;
  std::span<float> beta;
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
  std::span<float> word;        // [vocab_size, embedding_size]
  std::span<float> position;    // [rows, embedding_size]
  std::span<float> token_type;  // [type_vocab_size, embedding_size], or empty
  NormWeights embedding_norm;
  PackedLinear embedding_projection;  // empty unless embedding_size != hidden
  std::span<float> relative_bias;     // [heads, 2 * max_positions - 1], or empty
  kernels::Epilogue ffn_activation = kernels::Epilogue::kBias;
  std::vector<LayerWeights> layers;
  std::vector<DenseWeights> dense;  // after pooling
  DenseWeights head_dense;          // outputs == 0 if absent
  DenseWeights head_out;            // outputs == 0 if there is no head

  // Packs `tensors`, the layers' products in `precision`, into memory of its own; or, if `packed`
  // is given, uses an earlier object's memory(), made from tensors of the same shapes with the same
  // config and precision, in place: the caller keeps it alive.
  // Throws std::invalid_argument naming a tensor that is missing or misshapen, with the shape found
  // and the shape expected.
  EncoderWeights(const Context& context, const EncoderConfig& config, const TensorMap& tensors,
                 Precision precision, std::optional<std::span<const std::byte>> packed);

  // All of the above in one block.
  std::span<const std::byte> memory() const { return memory_; }

 private:
  void build(const Context& context, const EncoderConfig& config, const TensorMap& tensors,
             Precision precision, Arena& arena);

  AlignedBytes pages_;
  std::span<const std::byte> memory_;
};

}  // namespace tokprune
