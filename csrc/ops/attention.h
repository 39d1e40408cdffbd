// Multi-head self-attention on ragged rows, with importance statistics taken on the way.
//
// Two forms. The fused form (attention) never stores more than a block of probabilities. The
// staged form keeps the probabilities of a few sequences, so that a decision taken from their
// statistics can skip P V for the rows it drops: attention_probabilities, then the decision, then
// attention_values for the survivors. Both give the same bits.
//
// Softmax and statistics are float32 in every precision: bfloat16 and int8 only enter the two
// products, and probabilities are counted before they are rounded.
#pragma once

#include <cstdint>
#include <span>

#include "base/aligned.h"
#include "ops/context.h"
#include "ops/packed_linear.h"

namespace tokprune {

// The rows of one sequence that are alive: its queries, keys and voters.
struct RowSpan {
  int32_t begin = 0;
  int32_t count = 0;
};

// What a score reads off the attention probabilities A: one value per head and row.
struct Statistic {
  enum class Kind : uint8_t {
    kColumnSum,      // of A over the query rows that vote
    kRowEntropy,     // -sum A ln A over the keys of the row
    kColumnEntropy,  // -sum A ln A over all query rows
  };
  enum class Query : uint8_t { kAlive, kFirst, kSegment };
  Kind kind = Kind::kColumnSum;
  Query query = Query::kAlive;  // kColumnSum
  bool diagonal = true;         // count a token's attention to itself
  int32_t segment = 0;          // with kSegment: only query rows of this segment vote
  float* sum = nullptr;         // [heads][ld], overwritten
  int64_t ld = 0;
};

struct AttentionShape {
  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t part_stride = 0;  // columns from Q to K and from K to V
  float scale = 1.0f;
};

// Position bias of MPNet: table[head][distance + max_positions - 1], null = none.
struct RelativeBias {
  const float* table = nullptr;
  int64_t max_positions = 0;
};

// Scratch of one thread, for sequences of up to max_keys rows.
class AttentionScratch {
 public:
  AttentionScratch() = default;
  AttentionScratch(const AttentionShape& shape, int64_t max_keys);
  float* keys() const { return memory_.data(); }
  float* values() const { return memory_.data() + values_at_; }
  float* block() const { return memory_.data() + block_at_; }
  float* rounded() const { return memory_.data() + rounded_at_; }
  float* output() const { return memory_.data() + output_at_; }
  float* row_weight() const { return memory_.data() + weight_at_; }
  float* terms() const { return memory_.data() + terms_at_; }  // of entropies, a block as p
  float* row_entropy() const { return memory_.data() + row_entropy_at_; }

 private:
  AlignedArray<float> memory_;
  int64_t values_at_ = 0, block_at_ = 0, rounded_at_ = 0, output_at_ = 0, weight_at_ = 0,
          terms_at_ = 0, row_entropy_at_ = 0;
};

struct AttentionArgs {
  AttentionShape shape;
  Precision precision = Precision::kFp32;  // of both products, where they are rounded
  RelativeBias bias;
  const float* qkv = nullptr;  // [rows, 3 * part_stride]
  int64_t ld_qkv = 0;
  const int32_t* position = nullptr;  // [rows] original positions; used by the bias
  const float* key_bias = nullptr;    // [rows] added to every score of a key; null = none
  const int32_t* segment = nullptr;   // [rows]; used by kSegment statistics
  std::span<const RowSpan> sequences;
  std::span<const Statistic> statistics;
  const AttentionScratch* scratch = nullptr;  // [threads]
  float* dst = nullptr;                       // [rows, part_stride]
  int64_t ld_dst = 0;
};

// dst[row] = softmax(Q K^T scale + bias) V for every alive row. With first_row_only, only each
// sequence's first alive row is a query, and its result goes to dst[index of the sequence].
void attention(const Context& context, const AttentionArgs& args, bool first_row_only);

// Floats needed to store the probabilities of one sequence.
int64_t probability_floats(const AttentionShape& shape, int64_t keys);

// Where the staged form keeps probabilities: one block per sequence, at `offset`.
struct ProbabilityStore {
  float* data = nullptr;
  const int64_t* offset = nullptr;  // [sequences]
  float* inv_sum = nullptr;         // [heads][ld]
  int64_t ld = 0;
};

void attention_probabilities(const Context& context, const AttentionArgs& args,
                             const ProbabilityStore& store);

// dst[out_begin[s] + i] = result of the i-th kept row of sequence s; kept[s] lists row numbers of
// the batch in ascending order. The probabilities in `store` are consumed.
struct KeptRows {
  const int32_t* row = nullptr;
  int32_t count = 0;
  int32_t out_begin = 0;
};
void attention_values(const Context& context, const AttentionArgs& args,
                      const ProbabilityStore& store, std::span<const KeptRows> kept);

}  // namespace tokprune
