"""The masked run: every row is computed in every layer, the alive mask decides what counts.

Slots 0..n_pad-1 of the padded batch are the input tokens; each `package` step owns one more slot
after them, so row order is slot order. A row that a package creates answers for its smallest
position: token id, segment and position-indexed scores are looked up there. Rows that merge live on
in the slot of the first of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .merging import MERGING, cosines, group
from .result import ReferenceResult
from .rounding import attention_operands, attention_probabilities
from .scores import (
    ATTENTION,
    NOISE_FREE,
    attention_statistic,
    gate_scores,
    normalise,
    predicted_ratio,
    random_scores,
    reads_attention,
    table_scores,
)
from .select import select
from .weights import Encoder, Layer, read_encoder

SITES = ("embed", "pre", "mid", "post")

Plan = Mapping[str, Any]
Rows = Sequence[Sequence[int]]


def run(
    model: nn.Module,
    input_ids: Rows,
    plan: Plan | None = None,
    token_type_ids: Rows | None = None,
    segment_ids: Rows | None = None,
    protect: Rows | None = None,
    dtype: torch.dtype = torch.float64,
    *,
    pooling: Sequence[str] | None = None,
    precision: str = "fp32",
) -> ReferenceResult:
    """Run `plan` (None: dense) over the sequences `input_ids` with the weights of `model`.

    token_type_ids, segment_ids (default: token_type_ids) and protect (non-zero: may not leave) have
    the shape of input_ids. `pooling` lists modes to concatenate into `pooled`; `precision` is the
    arithmetic of the layers' products (see rounding.py).
    ValueError for unknown kinds in the plan, a plan for another number of layers, an empty
    sequence, or a plan that needs segments when none are given.
    """
    with torch.inference_mode():
        encoder = read_encoder(model, dtype, precision)
        plan = plan or {"layers": len(encoder.layers), "steps": []}
        if plan["layers"] != len(encoder.layers):
            raise ValueError(f"plan for {plan['layers']} layers, model has {len(encoder.layers)}")
        for step in plan["steps"]:
            layers = 1 if step["site"] == "embed" else plan["layers"]
            if step["site"] not in SITES or not 0 <= step["layer"] < layers:
                raise ValueError(f"no site {step['site']!r} at layer {step['layer']}")
        state = _State(encoder, input_ids, plan, token_type_ids, segment_ids, protect)
        state.precision = precision
        for index, layer in enumerate(encoder.layers):
            state.run_layer(index, layer)
        return state.result(pooling)


class _State:
    """Padded state [B, S, ...] and the traces, changed layer by layer."""

    precision = "fp32"
    keys: Tensor  # of the last attention, mean over heads [B, S, d / heads]

    def __init__(
        self,
        encoder: Encoder,
        input_ids: Rows,
        plan: Plan,
        token_type_ids: Rows | None,
        segment_ids: Rows | None,
        protect: Rows | None,
    ) -> None:
        self.encoder, self.plan = encoder, plan
        self.ids = [[int(token) for token in ids] for ids in input_ids]
        self.n0 = [len(ids) for ids in self.ids]
        if not self.ids or min(self.n0) == 0:
            raise ValueError("every sequence needs at least one token")
        types = token_type_ids or [[0] * n for n in self.n0]
        segments = _segments(plan, segment_ids or token_type_ids, self.n0)

        packages = [i for i, step in enumerate(plan["steps"]) if step["action"] == "package"]
        batch, n_pad = len(self.ids), max(self.n0)
        slots = n_pad + len(packages)
        self.package_slot = {step: n_pad + i for i, step in enumerate(packages)}
        dtype, width = encoder.word.dtype, encoder.layers[0].o.weight.shape[0]

        self.x = torch.zeros(batch, slots, width, dtype=dtype)
        self.alive = torch.zeros(batch, slots, dtype=torch.bool)
        self.passive = torch.zeros(batch, dtype=torch.bool)
        self.position = torch.zeros(batch, slots, dtype=torch.long)
        self.segment = torch.full((batch, slots), -1, dtype=torch.long)
        self.protected = torch.zeros(batch, slots, dtype=torch.bool)
        self.size = torch.zeros(batch, slots, dtype=torch.long)
        self.restored = torch.zeros(batch, n_pad, width, dtype=dtype)
        self.is_restored = torch.zeros(batch, n_pad, dtype=torch.bool)
        for b, n in enumerate(self.n0):
            self.x[b, :n] = encoder.embed(torch.tensor(self.ids[b]), torch.tensor(types[b]))
            self.alive[b, :n] = True
            self.position[b, :n] = torch.arange(n)
            self.segment[b, :n] = torch.tensor(segments[b])
            self.size[b, :n] = 1
            self.protected[b, :n] = torch.tensor(
                _protected(plan, self.ids[b], segments[b], None if protect is None else protect[b])
            )

        # Attention statistics by score index: of the last attention that ran, and the one before.
        used = {step["score"] for step in plan["steps"]}
        self.asked = [i for i in sorted(used) if reads_attention(plan["scores"][i])]
        self.latest: dict[int, Tensor] = {}
        self.previous: dict[int, Tensor] = {}
        self.accumulated = {
            i: torch.zeros(batch, slots, dtype=dtype)
            for i in self.asked
            if plan["scores"][i]["kind"] == "attn_cum"
        }
        self.kept: list[list[np.ndarray]] = []
        self.scores = [[np.full(n, math.nan) for n in self.n0] for _ in range(plan["layers"])]
        self.margin = [[math.inf] * batch for _ in range(plan["layers"])]
        self.unseen = [[math.inf] * batch for _ in range(plan["layers"])]

    # One layer ------------------------------------------------------------------------------------

    def run_layer(self, index: int, layer: Layer) -> None:
        """embed and pre steps, attention, mid steps, FFN, post steps."""
        self.run_steps(index, "embed", restore_from=self.x)
        self.run_steps(index, "pre", restore_from=self.x)
        layer_input = self.x
        context = self.attend(layer)
        # Rows dropped at mid pass here too; only the mask keeps them out of what follows.
        self.x = layer.attention_norm(layer_input + layer.o(context))
        self.run_steps(index, "mid", restore_from=layer_input)
        self.x = layer.ffn_norm(self.x + layer.ffn_out(layer.activation(layer.ffn_in(self.x))))
        self.run_steps(index, "post", restore_from=self.x)
        self.kept.append([self.position[b][self.alive[b]].numpy() for b in range(len(self.ids))])

    def attend(self, layer: Layer) -> Tensor:
        """Attention context [B, S, d]; updates the statistics of the probabilities."""
        batch, slots, width = self.x.shape
        heads = self.encoder.heads

        def split(rows: Tensor) -> Tensor:
            return rows.view(batch, slots, heads, width // heads).transpose(1, 2)

        q, k, v = split(layer.q(self.x)), split(layer.k(self.x)), split(layer.v(self.x))
        self.keys = k.mean(dim=1)
        q, k, rounded_v = attention_operands(self.precision, self.alive, q, k, v)
        logits = q @ k.transpose(2, 3) / math.sqrt(width // heads)
        if self.encoder.relative_bias is not None:
            distance = self.position[:, None, :] - self.position[:, :, None]
            logits = logits + self.encoder.relative_bias(distance).permute(0, 3, 1, 2)
        if self.plan.get("log_size", False):
            logits = logits + torch.log(self.size.clamp(min=1).to(logits.dtype))[:, None, None]
        dead_keys = ~self.alive[:, None, None, :]
        probs = torch.softmax(logits.masked_fill(dead_keys, -math.inf), dim=-1)
        # With no key left (only the passive first token goes on) softmax is 0/0: no context.
        probs = probs.masked_fill(dead_keys, 0.0)
        self.update_statistics(probs, v)

        # Importance above is that of the probabilities before they are rounded.
        top = probs.amax(dim=-1, keepdim=True)
        parts = probs / torch.where(top > 0, top, 1)
        parts = attention_probabilities(self.precision, self.alive, parts)
        context = (parts @ rounded_v) * top
        context = context.transpose(1, 2).reshape(batch, slots, width)
        # A first token that left in an earlier step gets no context, so O gives it its bias alone.
        # One that leaves at mid of this very layer still receives this layer's context.
        context[self.passive, 0] = 0.0
        return context

    def update_statistics(self, probs: Tensor, values: Tensor) -> None:
        self.previous, self.latest = self.latest, {}
        for i in self.asked:
            spec = self.plan["scores"][i]
            statistic = attention_statistic(spec, probs, values, self.alive, self.segment)
            if i in self.accumulated:
                self.accumulated[i] = spec["decay"] * self.accumulated[i] + statistic
            self.latest[i] = statistic

    # Steps ----------------------------------------------------------------------------------------

    def run_steps(self, layer: int, site: str, restore_from: Tensor) -> None:
        """Run the plan's steps of this layer and site in file order."""
        for index, step in enumerate(self.plan["steps"]):
            if (step["layer"], step["site"]) == (layer, site):
                for b, n0 in enumerate(self.n0):
                    if n0 >= self.plan["skip_below"] and self.alive[b].any():
                        self.run_step(index, step, b, restore_from)

    def run_step(self, index: int, step: Plan, b: int, restore_from: Tensor) -> None:
        if step["action"] in MERGING:
            self.merge(step, b)
            return
        layer, spec = step["layer"], self.plan["scores"][step["score"]]
        rows = torch.nonzero(self.alive[b]).flatten()
        positions, protected = self.position[b, rows].numpy(), self.protected[b, rows].numpy()
        scores = self.score(step, b, rows)
        chosen, closeness = step["select"], math.inf
        if chosen["kind"] == "predicted_ratio":
            chosen, closeness = predicted_ratio(chosen, self.x[b, rows[:1]])
        selection = select(
            chosen,
            scores,
            protected,
            positions,
            self.n0[b],
            noise_free=spec["kind"] in NOISE_FREE,
            least=float(np.abs(scores).mean()) if spec["kind"] == "gate" else 0.0,
        )
        self.scores[layer][b][positions] = scores
        self.margin[layer][b] = min(self.margin[layer][b], selection.margin, closeness)
        if selection.keep.all():
            return

        dropped = rows[torch.from_numpy(~selection.keep)]
        if step["action"] == "package":
            self.package(b, self.package_slot[index], dropped, scores[~selection.keep])
        elif step["action"] == "restore":
            self.restored[b, dropped] = restore_from[b, dropped]
            self.is_restored[b, dropped] = True
        elif step["action"] != "drop":
            raise ValueError(f"unknown action {step['action']!r}")
        self.alive[b, dropped] = False
        if self.plan["dead_first"] and int(dropped[0]) == 0:
            self.passive[b] = True
            self.is_restored[b, 0] = False

    def score(self, step: Plan, b: int, rows: Tensor) -> np.ndarray:
        """float64 scores of the alive rows of sequence b."""
        index, layer, site = step["score"], step["layer"], step["site"]
        spec = self.plan["scores"][index]
        positions = self.position[b, rows].numpy()
        if spec["kind"] == "table":
            return table_scores(spec, np.array(self.ids[b])[positions], positions)
        if spec["kind"] == "random":
            return random_scores(spec, self.ids[b], positions, layer)
        if spec["kind"] == "gate":
            if site == "mid":
                raise ValueError("a gate reads the states between layers")
            return gate_scores(spec, self.x[b, rows], layer)
        if spec["kind"] not in ATTENTION:
            raise ValueError(f"unknown score {spec['kind']!r}")
        if site == "embed" or (site == "pre" and layer == 0):
            raise ValueError("an attention score needs an attention that has run")
        if spec["kind"] == "attn_cum":
            statistic = self.accumulated[index]
        elif site == "pre":
            # The latest attention at this point is the previous layer's.
            statistic = self.latest[index]
        else:
            statistic = (self.latest if spec["from"] == "this" else self.previous)[index]
        column = statistic[b, rows].numpy().astype(np.float64)
        return normalise(spec, column, self.protected[b, rows].numpy(), self.n0[b])

    def package(self, b: int, slot: int, dropped: Tensor, scores: np.ndarray) -> None:
        """Fill `slot` with the score-weighted mean of the dropped rows."""
        total = scores.sum()
        share = scores / total if total > 0 else np.full(len(scores), 1 / len(scores))
        weights = torch.from_numpy(share).to(self.x.dtype)
        self.x[b, slot] = weights @ self.x[b, dropped]
        # The reduce map acts on everything a token has accumulated, not only on its hidden state.
        for statistics in (self.latest, self.previous, self.accumulated):
            for statistic in statistics.values():
                statistic[b, slot] = weights @ statistic[b, dropped]
        self.position[b, slot] = self.position[b, dropped].min()
        self.segment[b, slot] = self.segment[b, self.position[b, slot]]
        self.size[b, slot] = self.size[b, dropped].sum()
        self.alive[b, slot] = True

    def merge(self, step: Plan, b: int) -> None:
        """Groups of rows become their mean, weighted by size, in the slot of the first."""
        layer, spec = step["layer"], self.plan["scores"][step["score"]]
        if (spec["kind"] == "similarity") != (step["action"] == "merge"):
            raise ValueError(f"{step['action']} by {spec['kind']!r}")
        rows = torch.nonzero(self.alive[b]).flatten()
        cosine = None
        if spec["kind"] == "similarity":
            if spec["of"] == "keys" and step["site"] != "mid":
                raise ValueError("keys exist at mid only")
            vectors = self.keys if spec["of"] == "keys" else self.x
            cosine = cosines(vectors[b, rows].numpy())
            if spec["attention"]:
                received = self.latest[step["score"]][b, rows].numpy().astype(np.float64)
                loss = 0.5 * spec["attention"] * np.log(received + 1e-6)
                cosine = cosine - loss[:, None] - loss[None]
        protected = self.protected[b, rows].numpy()
        found = group(step["select"], cosine, protected, self.n0[b])

        positions, scored = self.position[b, rows].numpy(), ~np.isnan(found.scores)
        self.scores[layer][b][positions[scored]] = found.scores[scored]
        self.unseen[layer][b] = min(self.unseen[layer][b], found.margin)
        for members in found.groups:
            slots = rows[torch.from_numpy(members)]
            sizes = self.size[b, slots].to(self.x.dtype)
            weights = sizes / sizes.sum()
            first, rest = slots[0], slots[1:]
            self.x[b, first] = weights @ self.x[b, slots]
            for statistics in (self.latest, self.previous, self.accumulated):
                for statistic in statistics.values():
                    statistic[b, first] = weights @ statistic[b, slots]
            self.size[b, first] = self.size[b, slots].sum()
            self.alive[b, rest] = False

    # Output ---------------------------------------------------------------------------------------

    def result(self, pooling: Sequence[str] | None) -> ReferenceResult:
        """Collect the output rows of every sequence."""
        hidden, positions, alive, sizes = [], [], [], []
        for b in range(len(self.ids)):
            rows = self.alive[b].clone()
            rows[0] |= self.passive[b]
            x = self.x[b].clone()
            back = torch.nonzero(self.is_restored[b]).flatten()
            x[back] = self.restored[b, back]
            rows[back] = True
            hidden.append(x[rows].numpy())
            positions.append(self.position[b][rows].numpy())
            alive.append(self.alive[b][rows].numpy())
            sizes.append(self.size[b][rows].numpy())
        output = self.plan.get("output", {"kind": "none"})
        result = ReferenceResult(
            hidden,
            positions,
            alive,
            sizes,
            self.kept,
            self.scores,
            self.margin,
            self.unseen,
            output["over"] if output["kind"] == "mean" else "kept",
        )
        if pooling is None:
            return result
        return dataclasses.replace(result, pooled=result.pool(pooling))


def _segments(plan: Plan, segment_ids: Rows | None, lengths: Sequence[int]) -> list[list[int]]:
    """Segment of every token, -1 where unknown."""
    if segment_ids is not None:
        return [[int(s) for s in row] for row in segment_ids]
    by_score = any(score.get("query") == "segment" for score in plan.get("scores", []))
    if by_score or plan.get("protect", {}).get("segment", -1) >= 0:
        raise ValueError("the plan uses segments, but neither segment nor token type ids are given")
    return [[-1] * n for n in lengths]


def _protected(
    plan: Plan, ids: Sequence[int], segments: Sequence[int], mask: Sequence[int] | None
) -> list[bool]:
    """Tokens of one sequence that may not leave."""
    rule = plan.get("protect", {})
    flags = [bool(m) for m in mask] if mask is not None else [False] * len(ids)
    flags[0] |= rule.get("first", False)
    flags[-1] |= rule.get("last", False)
    for j, (token, segment) in enumerate(zip(ids, segments, strict=True)):
        flags[j] |= token in rule.get("token_ids", [])
        flags[j] |= segment >= 0 and segment == rule.get("segment", -1)
    return flags
