"""Presets of methods that learn a small network to choose: Transkimmer, AdapLeR, TR-BERT, AD-TP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .checks import integer
from .preset_parts import Document, build, listed, locate, step
from .storage import FloatArray
from .tensors import PARTS

Perceptron = Mapping[str, npt.ArrayLike]
"""A network with one hidden layer, each as in PyTorch's Linear: "hidden.weight" [h, d],
"hidden.bias" [h], "output.weight" [o, h] and "output.bias" [o]."""


def transkimmer(
    *,
    layers: int,
    gates: Sequence[Perceptron] | None = None,
    locations: Sequence[int] | None = None,
    activation: str = "gelu",
    **options: Any,
) -> Document:
    """Transkimmer (arXiv 2205.07324): before a layer, a gate per token decides to keep or to skim.

    The gate has two logits and the token stays when the second is at least the first: the
    deterministic choice, not the sample of training. Skimmed tokens keep their last state in the
    output.

    Args:
        gates: one network per location, with o = 2 (h = d in the paper).
        locations: layers with a gate. None: the last K layers for K gates, so that layers - 1
            gates leave the first layer out.
        activation: of the hidden layer.
        action: "restore" (default), or "drop" for outputs that read kept rows only.
    """
    places, tensors = _gates("transkimmer", layers, gates, locations, outputs=2)
    options.setdefault("action", "restore")
    steps = [step(places, "gate", site="pre", t=0.5)] if places else []
    score = {"kind": "gate", "tensor": "gate", "activation": activation}
    return build("transkimmer", layers, score, steps, options, tensors=tensors)


def adapler(
    *,
    layers: int,
    gates: Sequence[Perceptron] | None = None,
    eta: npt.ArrayLike | None = None,
    locations: Sequence[int] | None = None,
    activation: str = "gelu",
    **options: Any,
) -> Document:
    """AdapLeR (arXiv 2203.08991): before a layer, tokens that promise to contribute little leave.

    A network per layer predicts contributions, softmax over the tokens still there; a token stays
    when its contribution is at least eta / n.

    Args:
        gates: one network per location, with o = 1 (h = 32 in the paper).
        eta: learned threshold, one number or one per location.
        locations: layers that prune. None: the last K layers for K gates.
        activation: of the hidden layer.
    """
    places, tensors = _gates("adapler", layers, gates, locations, outputs=1)
    if eta is None:
        raise TypeError('preset "adapler" needs eta=, the learned thresholds')
    steps = [step(places, "threshold_n", site="pre", eta=listed(eta))] if places else []
    score = {"kind": "gate", "tensor": "gate", "activation": activation, "softmax": True}
    return build("adapler", layers, score, steps, options, tensors=tensors)


def tr_bert(
    *,
    layers: int,
    gates: Sequence[Perceptron] | None = None,
    locations: Sequence[int] | None = None,
    activation: str = "gelu",
    **options: Any,
) -> Document:
    """TR-BERT (arXiv 2105.11618): a policy network, learned by reinforcement, selects twice.

    A token stays when its probability of being selected, the sigmoid of the logit (or the softmax
    of two), is at least one half: the greedy choice.

    Args:
        gates: one network per location, with o = 1 or 2.
        locations: layers before which tokens are selected. None: layers 1 and layers // 2.
        activation: of the hidden layer.
    """
    integer(1)(layers, "layers")
    if locations is None:
        locations = sorted({min(1, layers - 1), layers // 2})
    places, tensors = _gates("tr-bert", layers, gates, locations, outputs=None)
    steps = [step(places, "gate", site="pre", t=0.5)] if places else []
    score = {"kind": "gate", "tensor": "gate", "activation": activation}
    return build("tr-bert", layers, score, steps, options, tensors=tensors)


def ad_tp(
    *,
    layers: int,
    gate: Perceptron | None = None,
    predictor: Perceptron | None = None,
    ratios: npt.ArrayLike | None = None,
    activation: str = "gelu",
    **options: Any,
) -> Document:
    """AD-TP: after the embeddings, a network chooses how many tokens stay, and another which.

    Args:
        gate: the network that scores tokens, with o = 1 or 2.
        predictor: the network that chooses the ratio from the first token, with o = K.
        ratios: [K] shares of the tokens, protected ones counted.
        activation: of both hidden layers.
    """
    integer(1)(layers, "layers")
    if gate is None or predictor is None or ratios is None:
        raise TypeError('preset "ad-tp" needs gate=, predictor= and ratios=, which are learned')
    tensors = _named("gate", "gate.0", gate, None)
    tensors |= _named("predictor", "predictor.0", predictor, len(listed(ratios)))
    choice = {"ratios": listed(ratios), "tensor": "predictor", "activation": activation}
    steps = [step([0], "predicted_ratio", site="embed", **choice)]
    score = {"kind": "gate", "tensor": "gate", "activation": activation}
    return build("ad-tp", layers, score, steps, options, tensors=tensors)


def _gates(
    method: str,
    layers: int,
    gates: Sequence[Perceptron] | None,
    locations: Sequence[int] | None,
    outputs: int | None,
) -> tuple[list[int], dict[str, FloatArray]]:
    """The layers that have a gate, and the tensors of the score "gate"."""
    integer(1)(layers, "layers")
    if gates is None:
        raise TypeError(f'preset "{method}" needs gates=, the learned networks')
    places = locate(layers, locations, list(gates))
    if len(places) != len(gates):
        found = f"{len(gates)} gates for {len(places)} locations"
        raise ValueError(f"gates: found {found}; allowed: one for each of {places}")
    tensors: dict[str, FloatArray] = {}
    for i, (layer, gate) in enumerate(zip(places, gates, strict=True)):
        tensors |= _named(f"gates[{i}]", f"gate.{layer}", gate, outputs)
    return places, tensors


def _named(
    argument: str, prefix: str, network: Perceptron, outputs: int | None
) -> dict[str, FloatArray]:
    """The four tensors of a network under the names of the format."""
    if network.keys() != PARTS.keys():
        found, allowed = sorted(network), list(PARTS)
        raise ValueError(f"{argument}: found the tensors {found}; allowed: exactly {allowed}")
    tensors = {f"{prefix}.{part}": np.asarray(network[part], np.float32) for part in PARTS}
    shape = tensors[f"{prefix}.output.weight"].shape
    if outputs is not None and shape[:1] != (outputs,):
        raise ValueError(f"{argument}: found output.weight {list(shape)}; allowed: [{outputs}, h]")
    return tensors
