// linear() cuts C into pieces that any thread may compute: the bits are those of one row at a time.
// Under AddressSanitizer this also shows that every piece stays within its scratch.
#include "ops/linear.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "kernels/registry.h"
#include "random_model.h"

namespace tokprune::testing {
namespace {

struct Case {
  int64_t inputs;
  int64_t outputs;
  int64_t rows;
};

// Rows and widths at which blocks of rows, of panels and of the inner dimension begin to be cut,
// the 512 x 3072 of BERT-base among them.
constexpr Case kCases[] = {{3072, 64, 512}, {3072, 80, 263}, {768, 48, 400},
                           {64, 1536, 30},  {20000, 32, 70}, {24, 400, 193}};

std::vector<float> random_values(Random& random, int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = random.value();
  return values;
}

struct Layer {
  std::vector<std::byte> memory;
  PackedLinear packed;
  std::vector<OperandScratch> operands;

  Layer(const Context& context, Precision precision, const Case& shape, int threads) {
    Arena measure;
    const PackedLinear sized(measure, precision, shape.inputs, shape.outputs);
    memory.resize(measure.used() + kAlignment);
    void* start = memory.data();
    std::size_t space = memory.size();
    CHECK(std::align(kAlignment, measure.used(), start, space));
    Arena arena({static_cast<std::byte*>(start), space}, Arena::Use::kFill);
    packed = PackedLinear(arena, precision, shape.inputs, shape.outputs);
    Random random(3);
    const std::vector<float> weight = random_values(random, shape.inputs * shape.outputs);
    const std::vector<float> bias = random_values(random, shape.outputs);
    packed.set(context, 0, shape.outputs, weight.data(), bias.data());
    for (int i = 0; i < threads; ++i) operands.emplace_back(precision, shape.inputs);
  }
};

std::vector<float> product(const Context& context, const Layer& layer, const Case& shape,
                           const std::vector<float>& src, bool one_row_at_a_time) {
  std::vector<float> dst(static_cast<std::size_t>(shape.rows * shape.outputs));
  const int64_t step = one_row_at_a_time ? 1 : shape.rows;
  for (int64_t row = 0; row < shape.rows; row += step) {
    LinearArgs args;
    args.src = src.data() + row * shape.inputs;
    args.ld_src = shape.inputs;
    args.dst = dst.data() + row * shape.outputs;
    args.ld_dst = shape.outputs;
    args.rows = step;
    args.operands = layer.operands.data();
    linear(context, layer.packed, args);
  }
  return dst;
}

void check_level(IsaLevel level, const NamedPrecision& arithmetic) {
  for (const Case& shape : kCases) {
    ThreadPool serial(1);
    const Context alone{&kernels::table_for(level), &serial};
    const Layer layer(alone, arithmetic.precision, shape, 40);
    Random random(5);
    const std::vector<float> src = random_values(random, shape.rows * shape.inputs);
    const std::vector<float> expected = product(alone, layer, shape, src, true);
    for (int threads : {1, 2, 3, 40}) {
      ThreadPool pool(threads);
      const Context context{&kernels::table_for(level), &pool};
      const std::vector<float> found = product(context, layer, shape, src, false);
      if (std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0) continue;
      std::fprintf(stderr, "%s, %s, %lld x %lld x %lld, %d threads\n",
                   std::string(isa_name(level)).c_str(), arithmetic.name,
                   static_cast<long long>(shape.rows), static_cast<long long>(shape.inputs),
                   static_cast<long long>(shape.outputs), threads);
      CHECK(false);
    }
  }
}

}  // namespace
}  // namespace tokprune::testing

int main() {
  for (tokprune::IsaLevel level : tokprune::supported_isa_levels()) {
    for (const auto& arithmetic :
         tokprune::testing::precisions_of(tokprune::kernels::table_for(level))) {
      tokprune::testing::check_level(level, arithmetic);
    }
  }
  std::puts("linear does not depend on how it is cut");
  return 0;
}
