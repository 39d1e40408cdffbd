#include "ops/mlp.h"

#include <span>

#include "base/arena.h"
#include "ops/linear.h"

namespace tokprune {

Mlp::Mlp(const Context& context, const MlpSource& source)
    : width_(source.hidden), outputs_(source.outputs), activation_(source.activation) {
  const auto place = [&](Arena arena) {
    hidden_ = PackedLinear(arena, Precision::kFp32, source.inputs, width_);
    output_ = PackedLinear(arena, Precision::kFp32, width_, outputs_);
    return arena.used();
  };
  memory_ = AlignedBytes(place(Arena()));
  place(Arena({memory_.data(), memory_.size()}, Arena::Use::kFill));
  hidden_.set(context, 0, width_, source.hidden_weight, source.hidden_bias);
  output_.set(context, 0, outputs_, source.output_weight, source.output_bias);
}

void Mlp::run(const Context& context, const Args& args) const {
  linear(context, hidden_,
         {.src = args.src,
          .ld_src = args.ld_src,
          .dst = args.hidden,
          .ld_dst = args.ld_hidden,
          .rows = args.rows,
          .epilogue = activation_});
  linear(context, output_,
         {.src = args.hidden,
          .ld_src = args.ld_hidden,
          .dst = args.dst,
          .ld_dst = args.ld_dst,
          .rows = args.rows});
}

}  // namespace tokprune
