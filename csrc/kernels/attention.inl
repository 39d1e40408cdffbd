// Softmax, position bias and importance statistics on a block of attention scores.

#include "kernels/activations.inl"

void softmax(const SoftmaxArgs& args) {
  const int64_t whole = args.n / V::kLanes * V::kLanes;
  const int64_t tail = args.n - whole;
  const int64_t padded = (args.n + kPanel - 1) / kPanel * kPanel;
  const V::reg scale = V::set1(args.scale);
  constexpr float kLowest = -3.4e38f;
  for (int64_t i = 0; i < args.rows; ++i) {
    float* s = args.s + i * args.ld;
    V::reg top = V::set1(kLowest);
    for (int64_t j = 0; j < whole; j += V::kLanes) top = V::max(top, V::mul(V::load(s + j), scale));
    if (tail) {
      // scale > 0, so the fill stays far below every real score.
      top = V::max(top, V::mul(V::load_n(s + whole, tail, kLowest), scale));
    }
    const V::reg shift = V::set1(V::maximum(top));
    V::reg total = V::zero();
    for (int64_t j = 0; j < whole; j += V::kLanes) {
      const V::reg e = exp(V::sub(V::mul(V::load(s + j), scale), shift));
      V::store(s + j, e);
      total = V::add(total, e);
    }
    int64_t end = whole;
    if (tail) {
      // All of the vector: reading back a store of a part of it would wait for that store.
      const V::reg e = exp(V::sub(V::mul(V::load(s + whole), scale), shift));
      const V::reg real = V::keep_n(e, tail);
      V::store(s + whole, real);
      total = V::add(total, real);
      end += V::kLanes;
    }
    for (; end < padded; end += V::kLanes) V::store(s + end, V::zero());
    args.inv_sum[i] = 1.0f / V::sum(total);
  }
}

void relative_bias(const RelativeBiasArgs& args) {
  for (int64_t i = 0; i < args.rows; ++i) {
    float* s = args.s + i * args.ld;
    const float* table = args.table - args.query_position[i];
    for (int64_t j = 0; j < args.n; ++j) s[j] = s[j] * args.scale + table[args.key_position[j]];
  }
}

void key_bias(const KeyBiasArgs& args) {
  const int64_t whole = args.n / V::kLanes * V::kLanes;
  const int64_t tail = args.n - whole;
  const V::reg scale = V::set1(args.scale);
  for (int64_t i = 0; i < args.rows; ++i) {
    float* s = args.s + i * args.ld;
    for (int64_t j = 0; j < whole; j += V::kLanes) {
      V::store(s + j, V::fma(V::load(s + j), scale, V::load(args.bias + j)));
    }
    if (!tail) continue;
    const V::reg bias = V::load_n(args.bias + whole, tail, 0.0f);
    V::store_n(s + whole, V::fma(V::load_n(s + whole, tail, 0.0f), scale, bias), tail);
  }
}

void column_sum(const ColumnSumArgs& args) {
  for (int64_t j = 0; j < args.n; j += V::kLanes) {
    V::reg acc = V::load(args.acc + j);
    const float* p = args.p + j;
    for (int64_t i = 0; i < args.rows; ++i) {
      acc = V::fma(V::load(p + i * args.ld), V::set1(args.row_weight[i]), acc);
    }
    V::store(args.acc + j, acc);
  }
}

void entropy(const EntropyArgs& args) {
  const int64_t whole = args.n / V::kLanes * V::kLanes;
  const int64_t tail = args.n - whole;
  const int64_t padded = (args.n + kPanel - 1) / kPanel * kPanel;
  const V::reg scale = V::set1(args.scale);
  constexpr float kLowest = -3.4e38f;
  for (int64_t i = 0; i < args.rows; ++i) {
    const float* p = args.p + i * args.ld;
    float* t = args.t + i * args.ld;
    V::reg top = V::set1(kLowest);
    for (int64_t j = 0; j < whole; j += V::kLanes) top = V::max(top, V::mul(V::load(t + j), scale));
    if (tail) top = V::max(top, V::mul(V::load_n(t + whole, tail, kLowest), scale));
    const V::reg shift = V::set1(V::maximum(top));
    const V::reg inverse = V::set1(args.inv_sum[i]);
    const V::reg log_sum = V::set1(args.log_sum[i]);
    const auto term = [&](V::reg probability, V::reg score) {
      // Where exp saturates, so does its logarithm.
      const V::reg z = V::max(V::sub(V::mul(score, scale), shift), V::set1(kLowestExponent));
      return V::mul(V::mul(probability, inverse), V::sub(log_sum, z));
    };
    V::reg total = V::zero();
    for (int64_t j = 0; j < whole; j += V::kLanes) {
      const V::reg x = term(V::load(p + j), V::load(t + j));
      V::store(t + j, x);
      total = V::add(total, x);
    }
    int64_t end = whole;
    if (tail) {
      const V::reg x = V::keep_n(term(V::load(p + whole), V::load(t + whole)), tail);
      V::store(t + whole, x);
      total = V::add(total, x);
      end += V::kLanes;
    }
    for (; end < padded; end += V::kLanes) V::store(t + end, V::zero());
    args.row_sum[i] = V::sum(total);
  }
}
