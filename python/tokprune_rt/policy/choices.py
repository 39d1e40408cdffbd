"""What a step of a policy reads and how it chooses: scores and selections.

Symbols as in `schema`: n tokens alive now (protected ones included), n0 tokens of the input, U the
unprotected alive tokens, A[h, q, j] the attention probability of head h from query row q to token
j, c_j a column sum of A, and X_j the state of token j where the step stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ENTROPIES = ("row_entropy", "col_entropy")
"""Scores that are entropies of attention probabilities."""


@dataclass(frozen=True)
class Score:
    """An importance score; higher means keep. Fields of other kinds stay at their default.

    Kinds:
        attn_col: column sum c_j of A over query rows and heads.
        attn_cls: heads' mean of A[h, 0, j], times the norm of the value row V[h, j] inside the
            mean when `value_norm`.
        attn_cum: acc_j = decay * acc_j + c_j, accumulated over every layer from 0 on, whether or
            not a step runs there. It includes the layer of the step.
        row_entropy: entropy -sum_k A[h, j, k] ln A[h, j, k] of what token j attends to.
        col_entropy: -sum_q A[h, q, j] ln A[h, q, j] over all query rows q.
        table: one number per token id or per original position, from a tensor.
        random: uniform in [0, 1), a function of seed, token ids, layer and position only.
        gate: the logit of a perceptron on X_j, in float32 (Transkimmer, AdapLeR, TR-BERT); with two
            outputs the second (keep) minus the first. See `tensor` for its weights. Only at sites
            embed, pre and post, and all steps that read one gate score are at one site.
        similarity: not one number per token but the cosine of two tokens, for action merge.
        uniform: no score, for action pool.

    Attributes:
        id: name by which steps refer to the score.
        kind: see above.
        heads: how heads are combined: "mean", "sum" or "max".
        diagonal: whether a token's attention to itself counts.
        query: the rows that vote: "alive" (all), "first" (row 0) or "segment" (see `segment`);
            in JSON the last is {"segment": k}.
        segment: the segment whose rows vote when `query` is "segment".
        norm: "none": c_j, whose mean over alive tokens is 1 whatever the length when heads are
            averaged; "alive": c_j / n; "const": c_j / `n`; "n0": c_j / n0; "unprotected": c_j
            divided by its mean over U, which leaves attention sinks such as [CLS] and [SEP] out.
        n: the constant of norm "const".
        source: field "from" in JSON: "this" layer's attention or the "previous" layer's.
        decay: factor of `attn_cum`.
        value_norm: weight `attn_cls` by the norm of the value rows.
        tensor: name of the `table` tensor, float32 of shape [rows]; of a `gate`, the prefix of its
            tensors: for every layer l of its steps, `{tensor}.{l}.hidden.weight` [h, d],
            `{tensor}.{l}.hidden.bias` [h], `{tensor}.{l}.output.weight` [o, h] and
            `{tensor}.{l}.output.bias` [o], with o = 1 or 2.
        index: what selects the row of the table: "token" id or original "position".
        seed: seed of `random`.
        sign: of an entropy: 1, or -1 to keep the tokens whose entropy is low.
        activation: of a gate's hidden layer: a name the engine has, or Hugging Face's for it.
        softmax: replaces a gate's logits (o = 1) by their softmax over the alive tokens.
        of: what `similarity` compares: "hidden", the states X_j (at `mid` those after attention,
            residual and LayerNorm), or "keys", the heads' mean of the layer's key vectors; keys
            only at `mid`, by the first step there.
        attention: of `similarity`: it falls by this, times the mean logarithm of what both tokens
            receive (c_j, head mean), so that tokens that matter little merge first. For `bipartite`
            and `all_pairs` at `mid` and `post`, with the attention of that layer.
    """

    id: str
    kind: str
    heads: str = "mean"
    diagonal: bool = True
    query: str = "alive"
    segment: int | None = None
    norm: str = "none"
    n: float | None = None
    source: str = "this"
    decay: float = 1.0
    value_norm: bool = False
    tensor: str | None = None
    index: str = "token"
    seed: int = 0
    sign: int = 1
    activation: str = "gelu"
    softmax: bool = False
    of: str = "hidden"
    attention: float = 0.0

    @property
    def reads_attention(self) -> bool:
        """Whether the score is computed from attention probabilities."""
        return self.kind.startswith("attn_") or self.kind in ENTROPIES or self.attention > 0

    @property
    def reads_first_row(self) -> bool:
        """Whether the score is what token 0 attends to, so that token 0 must stay alive."""
        return self.kind == "attn_cls" or self.query == "first"

    def to_dict(self) -> dict[str, Any]:
        """JSON form without defaults."""
        result: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name in ("id", "segment") or value == item.default:
                continue
            if item.name == "query" and value == "segment":
                value = {"segment": self.segment}
            result["from" if item.name == "source" else item.name] = value
        return result


@dataclass(frozen=True)
class Select:
    """Which tokens a step keeps, given their scores. Protected tokens always stay.

    Kinds, with the fields that are one value or a list aligned with the layers of the step:
        topk {k}: k tokens stay, protected ones counted (never fewer than the protected).
        ratio {ratio, of, round}: round(ratio * n) tokens stay, protected ones counted; `of` is
            "n" (default) or "n0", `round` is "ceil" (default), "floor" or "round" (half to even).
        threshold {theta, floor}: tokens with score >= max(floor, theta) stay; compared in fp32.
        threshold_n {eta}: tokens with score >= eta / n stay.
        threshold_rel {t, of}: tokens with score >= t * reference stay; `of` is "max" (default) or
            "mean", over all alive tokens.
        quantile {q}: the floor(q * |U|) lowest of U leave.
        gate {t}: tokens with sigmoid(score) >= t stay, that is, with score >= ln(t / (1 - t)); t is
            between 0 and 1, and the score a gate without softmax. With two outputs, 0.5 keeps
            where the second is at least the first.
        predicted_ratio {ratios, tensor, activation}: a perceptron on the state of the first token,
            which must be protected, chooses one of the K ratios, the lowest of equals; then
            ceil(ratio * n) tokens stay, protected ones counted. Its tensors are named as those of
            a gate (`Score.tensor`), with o = K. One list serves all layers of the step, and it
            stands only at sites embed, pre and post.
        top_p {p}: of U in descending order, the shortest prefix whose sum reaches p times the
            total of U stays.
        rank_bins {bits, bin_rule}: U is ranked in descending order and the ranks are cut into B
            equal bins; a token stays when the bit of its bin is 1. `bits` is [[0 or 1] * B] with
            one row per layer. `bin_rule` "int" (default): bin = rank * B // |U|; "float32":
            trunc(float32(float32(rank / float32(|U| + 1e-6)) * B)).

    For action merge, with a score of kind similarity; ratio, of and round as in `ratio`:
        bipartite {ratio, of, round} or {theta}: of U, the tokens at an even place among the alive
            tokens, counted from 0, may leave; the partner of each is the most similar of those at
            an odd place. Either the most similar to their partner leave until the count is
            reached, or all with a similarity > theta (fp32). Without partners none leaves (ToMe).
        all_pairs {ratio, of, round} or {theta}: the pairs of U are taken in order of falling
            similarity (ties: the lower first token, then the lower second one). The second token
            of a pair joins the first, or the one that none has joined yet joins the other; pairs
            are passed over of which a token has joined another, or both have been joined. It ends
            when the count is reached, or at the first similarity <= theta (fp32).
        energy_pairs {ratio, of, round, margin, alpha}: the energy of a token is the mean over U of
            f(similarity), f(x) = x from margin on and alpha * (exp(x - margin) - 1) below; `alpha`
            is 1 by default. For r tokens to leave, at most |U| // 2, the 2r of highest energy are
            taken in descending order: the first, third, ... leave, and the partner of each is the
            most similar of the others (PiToMe).

    For action pool, with a score of kind uniform:
        pool {ratio, of, round} or {stride}: U in order is cut into groups of neighbours: into as
            many as reach the count (at least one), equal in size give or take one, or into groups
            of `stride` >= 2, the last perhaps smaller.

    Every kind also takes min_tokens and max_tokens, see `Limits`; the stricter bound holds. Only
    max_tokens overrules a stride, and in `bipartite` and `all_pairs` it holds as far as tokens may
    leave at all.

    Attributes:
        kind: see above.
        values: field -> tuple with one value per layer of the step.
        options: field -> string ("of", "round", "bin_rule", "tensor", "activation").
    """

    kind: str
    values: Mapping[str, tuple[Any, ...]]
    options: Mapping[str, str]

    def overridden(self, other: Select | None) -> Select:
        """The selection with the fields of `other` (of a profile) in place of its own."""
        if other is None:
            return self
        values = {**self.values, **other.values}
        return Select(self.kind, values, {**self.options, **other.options})

    def to_dict(self) -> dict[str, Any]:
        """JSON form of the fields, without the kind; equal values per layer become one value."""
        result: dict[str, Any] = {}
        for name, values in self.values.items():
            if name == "bits":
                result[name] = [list(row) for row in values]
            elif name == "ratios":
                result[name] = list(values[0])
            else:
                result[name] = values[0] if len(set(values)) == 1 else list(values)
        return {**result, **self.options}
