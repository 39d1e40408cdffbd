"""The decisions of a policy on padded batches: those of the runtime under the same policy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tokprune_rt.policy import Policy, compile_plan
from tokprune_rt.train.masked import Pass
from tokprune_rt.train.networks import gate_score, predicted_ratio
from tokprune_rt.train.scores import ATTENTION, ENTROPY, Spec, normalise, statistic
from tokprune_rt.train.select import select

_ACTIONS = ("drop", "restore")


class PolicyChooser:
    """Runs the steps of ``policy`` under ``profile`` (None: the policy's own numbers).

    Raises ValueError for scores and actions that exist only in the runtime.
    """

    def __init__(self, policy: Policy, profile: str | None = None) -> None:
        plan = compile_plan(policy, profile)
        self._plan = plan or {"scores": [], "steps": []}
        for score in self._plan["scores"]:
            if score["kind"] not in (*ATTENTION, *ENTROPY, "gate", "table"):
                raise ValueError(f"score {score['kind']!r} is not available in training")
        for step in self._plan["steps"]:
            if step["action"] not in _ACTIONS:
                raise ValueError(f"action {step['action']!r} is not available in training")

    def before_layer(self, run: Pass, layer: int, hidden: Tensor) -> None:
        if layer == 0:
            self._steps(run, layer, "embed", hidden)
        self._steps(run, layer, "pre", hidden)

    def after_softmax(
        self, run: Pass, layer: int, probs: Tensor, values: Tensor, hidden: Tensor
    ) -> None:
        latest = run.notes.get("latest", {})
        run.notes["previous"], run.notes["latest"] = latest, {}
        for index, spec in enumerate(self._plan["scores"]):
            if spec["kind"] not in (*ATTENTION, *ENTROPY):
                continue
            found = statistic(spec, run, probs, values)
            if spec["kind"] == "attn_cum" and index in latest:
                found = spec["decay"] * latest[index] + found
            run.notes["latest"][index] = found
        self._steps(run, layer, "mid", hidden)

    def after_layer(self, run: Pass, layer: int, hidden: Tensor) -> Tensor:
        self._steps(run, layer, "post", hidden)
        return hidden

    def _steps(self, run: Pass, layer: int, site: str, hidden: Tensor) -> None:
        for step in self._plan["steps"]:
            if (step["layer"], step["site"]) == (layer, site):
                self._step(run, step, hidden)

    def _step(self, run: Pass, step: Spec, hidden: Tensor) -> None:
        spec = self._plan["scores"][step["score"]]
        protected = self._protected(run)
        if spec["kind"] == "gate":
            scores = gate_score(spec, step["layer"], hidden, run.alive)
        else:
            scores = self._score(run, step, spec, protected)
        run.scores.append(scores)
        rule = step["select"]
        if rule["kind"] == "predicted_ratio":
            rule = rule | {"ratio": predicted_ratio(rule, hidden)}
        stays = select(rule, scores, run.alive, protected, run.lengths)
        long_enough = run.lengths >= self._plan["skip_below"]
        leaves = run.alive & ~stays & long_enough[:, None]
        if step["action"] == "restore":
            run.restore(leaves, hidden)
        run.alive = run.alive & ~leaves
        if self._plan["dead_first"]:
            before = run.passive if run.passive is not None else torch.zeros_like(long_enough)
            run.passive = before | leaves[:, 0]
            if run.restored is not None:
                run.restored[:, 0] &= ~run.passive

    def _score(self, run: Pass, step: Spec, spec: Spec, protected: Tensor) -> Tensor:
        if spec["kind"] == "table":
            table = torch.as_tensor(spec["table"], device=run.input_ids.device)
            places = torch.arange(run.input_ids.shape[1], device=run.input_ids.device)
            index = run.input_ids if spec["index"] == "token" else places.expand_as(run.input_ids)
            return table[index]
        # Before a layer, the latest attention is the layer's before.
        previous = spec["from"] == "previous" and step["site"] != "pre"
        column = run.notes["previous" if previous else "latest"][step["score"]]
        return normalise(spec, run, column, protected)

    def _protected(self, run: Pass) -> Tensor:
        if "protected" not in run.notes:
            run.notes["protected"] = protected_tokens(self._plan["protect"], run)
        return run.notes["protected"]


def protected_tokens(rule: Spec, run: Pass) -> Tensor:
    """Tokens that never leave, bool [B, S]; ``rule`` is the ``protect`` part of a compiled plan."""
    places = torch.arange(run.real.shape[1], device=run.real.device)
    found = torch.zeros_like(run.real)
    if rule["first"]:
        found = found | (places == 0)
    if rule["last"]:
        found = found | (places == run.lengths[:, None] - 1)
    if rule["token_ids"]:
        found = found | torch.isin(run.input_ids, torch.tensor(rule["token_ids"]).to(places))
    if rule["segment"] >= 0:
        found = found | (run.segments == rule["segment"])
    return found & run.real


def pinned_tokens(rule: Spec, inputs: Mapping[str, Tensor]) -> Tensor:
    """How many tokens of each sequence never leave, int64 [B]; ``inputs`` as a model takes them."""
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    segments = inputs.get("segment_ids", torch.zeros_like(ids))
    return protected_tokens(rule, Pass(inputs, ids, real, segments, real)).sum(dim=1).cpu()
