// A ragged batch: concatenated tokens and where each sequence begins. No padding exists.
#pragma once

#include <cstdint>

#include "model/config.h"

namespace tokprune {

struct RaggedBatch {
  int64_t sequences = 0;
  const int32_t* cu_seqlens = nullptr;      // [sequences + 1]
  const int32_t* input_ids = nullptr;       // [tokens]
  const int32_t* token_type_ids = nullptr;  // [tokens], null = 0
  const int32_t* segment_ids = nullptr;     // [tokens], null = token_type_ids; used by policies
  const uint8_t* protect = nullptr;         // [tokens], null = none; 1 = never prune
  const int32_t* pool_skip = nullptr;       // [sequences], null = 0; leading tokens not pooled

  int64_t tokens() const { return cu_seqlens[sequences] - cu_seqlens[0]; }
  int64_t length(int64_t s) const {
    return static_cast<int64_t>(cu_seqlens[s + 1]) - static_cast<int64_t>(cu_seqlens[s]);
  }
  // First token of a sequence, as an index into the token arrays.
  int32_t begin(int64_t s) const { return cu_seqlens[s] - cu_seqlens[0]; }
  int32_t segment(int64_t token) const {
    if (segment_ids) return segment_ids[token];
    return token_type_ids ? token_type_ids[token] : 0;
  }
  // Sequences [first, last) of this batch.
  RaggedBatch slice(int64_t first, int64_t last) const;
};

// Throws std::invalid_argument naming the sequence, the index, the value and the limit.
void validate(const RaggedBatch& batch, const EncoderConfig& config);

}  // namespace tokprune
