"""The tensors of a policy: which ones its scores and selections name, and their shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .checks import child, fail, names
from .choices import Score
from .schema import Policy
from .storage import FloatArray

PARTS = {"hidden.weight": 2, "hidden.bias": 1, "output.weight": 2, "output.bias": 1}
"""The tensors of a perceptron with one hidden layer, and their dimensions."""


@dataclass(frozen=True)
class Perceptron:
    """A perceptron that a policy names.

    Attributes:
        path: JSON path of the field that names it.
        prefix: what its tensors' names begin with.
        outputs: how many outputs it may have.
    """

    path: str
    prefix: str
    outputs: tuple[int, ...]


def perceptron(policy: Policy, tensor: str, layer: int) -> dict[str, FloatArray]:
    """The tensors of the perceptron of one layer, by the keys of `PARTS`."""
    return {part: policy.tensors[f"{tensor}.{layer}.{part}"] for part in PARTS}


def perceptrons(policy: Policy) -> Iterator[Perceptron]:
    """Every perceptron of the policy, once for each place that names it."""
    for step in policy.steps:
        score = policy.scores[step.score]
        if score.kind == "gate":
            path = f"{child('$.scores', score.id)}.tensor"
            outputs = (1,) if score.softmax else (1, 2)
            for layer in step.layers:
                yield Perceptron(path, f"{score.tensor}.{layer}", outputs)
    for profile in (None, *policy.profiles):
        where = "$" if profile is None else child("$.profiles", profile)
        selects, _, _ = policy.resolve(profile)
        for i, (step, select) in enumerate(zip(policy.steps, selects, strict=True)):
            if select.kind != "predicted_ratio":
                continue
            # A profile may choose among other ratios, with the same network or its own.
            for layer, ratios in zip(step.layers, select.values["ratios"], strict=True):
                path = f"{where}.steps[{i}]" + (".select.tensor" if profile is None else "")
                yield Perceptron(path, f"{select.options['tensor']}.{layer}", (len(ratios),))


def check_tensors(policy: Policy) -> None:
    """Checks that every tensor named is there, in the right shape, and that no other is.

    Raises:
        PolicyError: naming the JSON path and the tensor.
    """
    used: set[str] = set()
    for score in policy.scores.values():
        if score.kind == "table":
            used.add(_check_table(policy, score))
    for found in perceptrons(policy):
        used |= _check_perceptron(policy, found)
    for name in policy.tensors:
        if name not in used:
            unused = f'no score or selection that uses the tensor "{name}"'
            fail("$.scores", unused, "only tensors in use")


def check_widths(policy: Policy, hidden: int) -> None:
    """Checks that the policy's perceptrons read states of `hidden` numbers.

    Raises:
        PolicyError: naming the tensor.
    """
    for found in perceptrons(policy):
        name = f"{found.prefix}.hidden.weight"
        shape = policy.tensors[name].shape
        if shape[1] != hidden:
            allowed = f"shape [h, {hidden}], the hidden size of the model"
            fail(found.path, f'"{name}" of shape {list(shape)}', allowed)


def _get(policy: Policy, path: str, name: str) -> FloatArray:
    tensor = policy.tensors.get(name)
    if tensor is None:
        fail(path, f'no tensor "{name}"', f"a tensor of the policy: {names(policy.tensors)}")
    bad = np.argwhere(~np.isfinite(tensor))
    if bad.size:
        at = [int(i) for i in bad[0]]
        place = f"row {at[0]}" if len(at) == 1 else f"{at}"
        fail(path, f'"{name}" with {tensor[tuple(at)]} in {place}', "finite numbers")
    return tensor


def _check_table(policy: Policy, score: Score) -> str:
    path, name = f"{child('$.scores', score.id)}.tensor", str(score.tensor)
    shape = _get(policy, path, name).shape
    if len(shape) != 1 or shape[0] == 0:
        fail(path, f'"{name}" of shape {list(shape)}', "shape [rows], rows >= 1")
    return name


def _check_perceptron(policy: Policy, found: Perceptron) -> set[str]:
    tensors = {part: _get(policy, found.path, f"{found.prefix}.{part}") for part in PARTS}

    def wrong(part: str, allowed: str) -> None:
        shape = list(tensors[part].shape)
        fail(found.path, f'"{found.prefix}.{part}" of shape {shape}', allowed)

    for part, rank in PARTS.items():
        if tensors[part].ndim != rank or tensors[part].size == 0:
            wrong(part, f"{rank} dimensions, none of them 0")
    width = tensors["hidden.weight"].shape[0]
    outputs = tensors["output.weight"].shape[0]
    if tensors["hidden.bias"].shape != (width,):
        wrong("hidden.bias", f"shape [{width}], the rows of hidden.weight")
    if tensors["output.weight"].shape[1] != width:
        wrong("output.weight", f"shape [o, {width}], the rows of hidden.weight")
    if outputs not in found.outputs:
        allowed = " or ".join(map(str, found.outputs))
        wrong("output.weight", f"shape [o, {width}] with o = {allowed}")
    if tensors["output.bias"].shape != (outputs,):
        wrong("output.bias", f"shape [{outputs}], the rows of output.weight")
    return {f"{found.prefix}.{part}" for part in PARTS}
