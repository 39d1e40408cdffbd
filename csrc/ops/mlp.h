// A perceptron with one hidden layer, as the gates of a pruning policy use it. Always float32.
#pragma once

#include <cstdint>

#include "base/aligned.h"
#include "kernels/abi.h"
#include "ops/context.h"
#include "ops/packed_linear.h"

namespace tokprune {

// y = output(activation(hidden(x))), weights in Hugging Face layout: row-major [outputs, inputs].
struct MlpSource {
  int64_t inputs = 0;
  int64_t hidden = 0;
  int64_t outputs = 0;
  const float* hidden_weight = nullptr;
  const float* hidden_bias = nullptr;
  const float* output_weight = nullptr;
  const float* output_bias = nullptr;
  kernels::Epilogue activation = kernels::Epilogue::kBias;  // with its bias
};

class Mlp {
 public:
  // Packs the weights; the result serves every level and thread.
  Mlp(const Context& context, const MlpSource& source);

  int64_t inputs() const { return hidden_.inputs; }
  int64_t outputs() const { return outputs_; }
  // Columns that a row of the hidden layer and of the output takes, padding included.
  int64_t hidden_columns() const { return hidden_.outputs; }
  int64_t output_columns() const { return output_.outputs; }
  // Multiply-adds of one row.
  int64_t macs() const { return width_ * (inputs() + outputs_); }

  // dst[rows, ld_dst] = y of src[rows, ld_src]. `hidden` is scratch of [rows, ld_hidden]. A row's
  // result depends on that row only.
  struct Args {
    const float* src = nullptr;
    int64_t ld_src = 0;
    float* hidden = nullptr;
    int64_t ld_hidden = 0;
    float* dst = nullptr;
    int64_t ld_dst = 0;
    int64_t rows = 0;
  };
  void run(const Context& context, const Args& args) const;

 private:
  int64_t width_;
  int64_t outputs_;
  kernels::Epilogue activation_;
  AlignedBytes memory_;
  PackedLinear hidden_, output_;
};

}  // namespace tokprune
