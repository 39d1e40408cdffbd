#include "model/batch.h"

#include "base/check.h"

namespace tokprune {
namespace {

void check_ids(const RaggedBatch& batch, const int32_t* ids, const char* name, int64_t limit) {
  for (int64_t s = 0; s < batch.sequences; ++s) {
    const int32_t* sequence = ids + batch.begin(s);
    for (int64_t i = 0; i < batch.length(s); ++i) {
      require(sequence[i] >= 0 && sequence[i] < limit, name, " of sequence ", s, " at index ", i,
              " is ", sequence[i], "; expected 0 to ", limit - 1);
    }
  }
}

}  // namespace

RaggedBatch RaggedBatch::slice(int64_t first, int64_t last) const {
  RaggedBatch part = *this;
  part.sequences = last - first;
  const int64_t skipped = cu_seqlens[first] - cu_seqlens[0];
  part.cu_seqlens += first;
  part.input_ids += skipped;
  if (part.token_type_ids) part.token_type_ids += skipped;
  if (part.segment_ids) part.segment_ids += skipped;
  if (part.protect) part.protect += skipped;
  if (part.pool_skip) part.pool_skip += first;
  return part;
}

void validate(const RaggedBatch& batch, const EncoderConfig& config) {
  require(batch.cu_seqlens[0] == 0, "cu_seqlens starts at ", batch.cu_seqlens[0], "; expected 0");
  for (int64_t s = 0; s < batch.sequences; ++s) {
    const int64_t length = batch.length(s);
    require(length > 0, "sequence ", s, " has ", length, " tokens; expected at least 1");
    require(length <= config.max_positions, "sequence ", s, " has ", length,
            " tokens; the model takes at most ", config.max_positions);
  }
  check_ids(batch, batch.input_ids, "input_ids", config.vocab_size);
  if (batch.token_type_ids && config.type_vocab_size > 0) {
    check_ids(batch, batch.token_type_ids, "token_type_ids", config.type_vocab_size);
  }
}

}  // namespace tokprune
