// Kernels that work row by row: layer_norm, embed, reduce_rows. Contracts in abi.h.

inline void zero_padding(float* row, int64_t cols) {
  const int64_t padded = (cols + kPanel - 1) / kPanel * kPanel;
  for (int64_t j = cols; j < padded; ++j) row[j] = 0.0f;
}

void layer_norm(const LayerNormArgs& args) {
  const int64_t whole = args.cols / V::kLanes * V::kLanes;
  const int64_t tail = args.cols - whole;
  const float inv_cols = 1.0f / static_cast<float>(args.cols);
  for (int64_t i = 0; i < args.rows; ++i) {
    const float* src = args.src + (args.src_rows ? args.src_rows[i] : i) * args.ld_src;
    float* dst = args.dst + (args.dst_rows ? args.dst_rows[i] : i) * args.ld_dst;
    V::reg total = V::zero();
    for (int64_t j = 0; j < whole; j += V::kLanes) total = V::add(total, V::load(src + j));
    if (tail) total = V::add(total, V::load_n(src + whole, tail, 0.0f));
    const float mean_value = V::sum(total) * inv_cols;
    const V::reg mean = V::set1(mean_value);
    V::reg squares = V::zero();
    for (int64_t j = 0; j < whole; j += V::kLanes) {
      const V::reg x = V::sub(V::load(src + j), mean);
      squares = V::fma(x, x, squares);
    }
    if (tail) {
      const V::reg x = V::sub(V::load_n(src + whole, tail, mean_value), mean);
      squares = V::fma(x, x, squares);
    }
    const float variance = V::sum(squares) * inv_cols;
    const V::reg inv = V::set1(1.0f / __builtin_sqrtf(variance + args.eps));
    for (int64_t j = 0; j < whole; j += V::kLanes) {
      const V::reg x = V::mul(V::sub(V::load(src + j), mean), inv);
      V::store(dst + j, V::fma(x, V::load(args.gamma + j), V::load(args.beta + j)));
    }
    if (tail) {
      const V::reg x = V::mul(V::sub(V::load_n(src + whole, tail, mean_value), mean), inv);
      const V::reg gamma = V::load_n(args.gamma + whole, tail, 0.0f);
      const V::reg beta = V::load_n(args.beta + whole, tail, 0.0f);
      V::store_n(dst + whole, V::fma(x, gamma, beta), tail);
    }
    zero_padding(dst, args.cols);
  }
}

void embed(const EmbedArgs& args) {
  for (int64_t i = 0; i < args.rows; ++i) {
    const float* word = args.word + args.word_id[i] * args.cols;
    const float* position = args.position + args.position_id[i] * args.cols;
    float* dst = args.dst + i * args.ld_dst;
    if (args.type) {
      const float* type = args.type + args.type_id[i] * args.cols;
      for (int64_t j = 0; j < args.cols; ++j) dst[j] = (word[j] + type[j]) + position[j];
    } else {
      for (int64_t j = 0; j < args.cols; ++j) dst[j] = word[j] + position[j];
    }
    zero_padding(dst, args.cols);
  }
}

void reduce_rows(const ReduceRowsArgs& args) {
  for (int64_t i = 0; i < args.rows; ++i) {
    float* dst = args.dst + i * args.ld_dst;
    if (!args.weight) {
      const float* src = args.src + args.column[i] * args.ld_src;
      if (src != dst) {
        for (int64_t j = 0; j < args.cols; ++j) dst[j] = src[j];
      }
    } else {
      for (int64_t j = 0; j < args.cols; ++j) dst[j] = 0.0f;
      for (int32_t e = args.row_begin[i]; e < args.row_begin[i + 1]; ++e) {
        const float* src = args.src + args.column[e] * args.ld_src;
        const float weight = args.weight[e];
        for (int64_t j = 0; j < args.cols; ++j) dst[j] += weight * src[j];
      }
    }
    zero_padding(dst, args.cols);
  }
}
