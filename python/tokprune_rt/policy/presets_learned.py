"""Presets of methods whose numbers are learned: LTP, ToP, PoWER-BERT, LAT."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .checks import integer
from .preset_parts import Document, build, listed, ramp, step


def ltp(
    *,
    layers: int,
    final_threshold: float | None = None,
    deltas: npt.ArrayLike | None = None,
    s_pad: float = 128,
    norm: str | None = None,
    official: bool = False,
    **options: Any,
) -> Document:
    """Learned Token Pruning (arXiv 2107.00910): a threshold per layer on attention received.

    A token stays at layer i when c_j / s_pad >= theta_i, with theta_i = float32(final_threshold *
    i / layers) + deltas[i] in float32. Layer 0 never prunes; nor does a layer whose theta is 0.

    Args:
        final_threshold: the checkpoint's `final_token_threshold`. None: no learned thresholds;
            then 0.5 with norm "unprotected", a rising share of the mean score, which works
            untrained; with `official`, 0.01, where the recipe's training starts.
        deltas: [layers] learned offsets (`keep_threshold`); deltas[0] must be 0.
        s_pad: the length that training padded to. It is not stored in official checkpoints; 128
            in their recipe. Only norm "const" uses it.
        norm: normaliser of the score, see `Score`. None: "const", but "unprotected" untrained.
        official: the rule of the official code: no token is protected, the first token goes on
            passively when it is dropped, and thresholds are at least 1e-5.
    """
    integer(1)(layers, "layers")
    trained = final_threshold is not None or official
    if deltas is not None and final_threshold is None:
        raise TypeError('preset "ltp": deltas= needs final_threshold=, to which they are added')
    norm = norm or ("const" if trained else "unprotected")
    if final_threshold is None:
        final_threshold = 0.01 if official else 0.5
    offsets = np.zeros(layers, np.float32) if deltas is None else np.asarray(deltas, np.float32)
    if offsets.shape != (layers,):
        raise ValueError(f"deltas: found shape {list(offsets.shape)}; allowed: [{layers}]")
    if offsets[0] != 0:
        raise ValueError(f"deltas[0]: found {offsets[0]}; allowed: 0, layer 0 never prunes")
    base = np.array([final_threshold * i / layers for i in range(layers)]).astype(np.float32)
    theta = base + offsets
    active = [i for i in range(1, layers) if theta[i] != 0]
    score: Document = {"kind": "attn_col", "norm": norm}
    if norm == "const":
        score["n"] = s_pad
    extra: Document = {"dead_first": "passive"} if official else {}
    select: Document = {"theta": [float(theta[i]) for i in active]}
    if official:
        select["floor"] = 1e-5
    steps = [step(active, "threshold", **select)] if active else []
    return build("ltp", layers, score, steps, options, special=not trained, **extra)


def top(
    *,
    layers: int,
    token_bits: npt.ArrayLike | None = None,
    gate_bits: npt.ArrayLike | None = None,
    locations: Sequence[int] | None = None,
    bin_rule: str = "int",
    task: str = "cls",
    official: bool = False,
    **options: Any,
) -> Document:
    """ToP, Constraint-aware and Ranking-distilled Token Pruning (arXiv 2306.14393).

    The gate at location i acts on the input of layer i by the attention of layer i - 1. Tokens
    are ranked and cut into bins; a token stays when the bit of its bin is 1.

    Args:
        token_bits: [K, B] of 0 and 1. None: untrained, the lowest tenth leaves at each location.
        gate_bits: [K] of 0 and 1; a gate that is 0 does nothing. None: all are on.
        locations: [K], increasing, 1 <= i < layers. None: the last K layers. With task "cls" also
            `layers`: before the last layer's FFN, which the first token alone needs.
        bin_rule: "int", or "float32" as the official code computes bins.
        task: "cls": dropped between attention and FFN of layer i - 1, exact for outputs that
            read kept rows. "tokens": restored after layer i - 1, for an output per token.
        official: the bits come from an official checkpoint: bin_rule is "float32", and the policy
            is marked as unverified, because there padding and pruned rows vote as well.
    """
    integer(1)(layers, "layers")
    if task not in ("cls", "tokens"):
        raise ValueError(f'task: found {task!r}; allowed: "cls", "tokens"')
    if "action" in options:
        raise TypeError('preset "top": unknown parameter "action"; "task" decides it')
    trained = token_bits is not None
    if token_bits is None:
        count = max(layers - 2, min(layers - 1, 1)) if locations is None else len(locations)
        token_bits = [[1] * 9 + [0]] * count
    bits = np.asarray(token_bits)
    if bits.ndim != 2 and bits.size:
        raise ValueError(f"token_bits: found shape {list(bits.shape)}; allowed: [K, B]")
    count = len(bits)
    gates = np.ones(count) if gate_bits is None else np.asarray(gate_bits)
    places = list(range(layers - count, layers)) if locations is None else list(locations)
    if gates.shape != (count,) or len(places) != count:
        found = f"gate_bits {list(gates.shape)} and {len(places)} locations"
        raise ValueError(f"{found}; allowed: {count} of each, as token_bits has {count} rows")
    for name, values in (("token_bits", bits), ("gate_bits", gates)):
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"{name}: found values other than 0 and 1; allowed: 0, 1")
    # After the last layer's attention no head that reads kept rows needs the others.
    last = layers if task == "cls" else layers - 1
    if any(not 1 <= place <= last for place in places):
        raise ValueError(f"locations: found {places}; allowed: 1 to {last}")
    on = [k for k in range(count) if gates[k]]
    rows = [[int(bit) for bit in bits[k]] for k in on]
    site, action = ("mid", "drop") if task == "cls" else ("post", "restore")
    rule = "float32" if official else bin_rule
    before = [places[k] - 1 for k in on]
    steps = [step(before, "rank_bins", site=site, bits=rows, bin_rule=rule)] if on else []
    options["action"] = action
    if official:
        options["provenance"] = {"parity": "unverified", **(options.get("provenance") or {})}
    return build("top", layers, {"kind": "attn_col"}, steps, options, special=not trained)


def power_bert(
    *,
    layers: int,
    retention: npt.ArrayLike | None = None,
    max_length: int = 128,
    final_keep: float = 0.5,
    **options: Any,
) -> Document:
    """PoWER-BERT (arXiv 2001.08950): a fixed, non-increasing count of tokens for every layer.

    Args:
        retention: [layers] tokens left by each layer (the learned retention configuration).
            None: untrained, falling linearly from `max_length` to `final_keep * max_length`.
        max_length: the length that the counts of the untrained setting refer to.
        final_keep: share of `max_length` left after the last layer of the untrained setting.
    """
    integer(1)(layers, "layers")
    trained = retention is not None
    if retention is None:
        shares = ramp(layers + 1, 1.0, final_keep)[1:]
        retention = [max(1, math.ceil(max_length * share - 1e-9)) for share in shares]
    counts = listed(retention)
    if len(counts) != layers:
        raise ValueError(f"retention: found {len(counts)} counts; allowed: {layers}")
    if any(a < b for a, b in itertools.pairwise(counts)):
        raise ValueError(f"retention: found {counts}; allowed: counts that never increase")
    score = {"kind": "attn_col", "diagonal": False}
    steps = [step(range(layers), "topk", k=counts)]
    return build("power-bert", layers, score, steps, options, special=not trained)


def lat(
    *,
    layers: int,
    length_configs: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    max_length: int | None = None,
    **options: Any,
) -> Document:
    """Length-Adaptive Transformer (arXiv 2010.07003): length configurations as profiles.

    Args:
        length_configs: tokens left after each layer, a tuple of [layers] counts; or a mapping
            name -> tuple, of which the first is the default and each is a profile. None:
            untrained, 5% fewer tokens at each layer, and profile "fast" with 15% fewer.
        max_length: the input length that the counts refer to; they become shares of each input's
            own length. None: the counts are absolute.
        action: "drop", or "restore" for outputs per token (the paper's drop-and-restore).
    """
    integer(1)(layers, "layers")
    trained = length_configs is not None
    field = "k" if trained and max_length is None else "ratio"
    configs: dict[str | None, list[int] | list[float]] = {}
    if length_configs is None:
        for name, drop in ((None, 0.05), ("fast", 0.15)):
            configs[name] = [(1 - drop) ** (i + 1) for i in range(layers)]
    else:
        named: Mapping[Any, Sequence[int]] = (
            length_configs if isinstance(length_configs, Mapping) else {None: length_configs}
        )
        if not named:
            raise ValueError("length_configs: found none; allowed: at least one")
        for name, lengths in named.items():
            counts = listed(lengths)
            if len(counts) != layers:
                found = f"{len(counts)} lengths" + (f" in {name!r}" if name else "")
                raise ValueError(f"length_configs: found {found}; allowed: {layers}")
            if max_length is not None:
                integer(1)(max_length, "max_length")
                counts = [min(1.0, count / max_length) for count in counts]
            configs[name] = counts
    profiles = {
        name: {"steps": [{field: values}]} for name, values in configs.items() if name is not None
    }
    profiles.update(options.get("profiles") or {})
    options["profiles"] = profiles or None
    select: Document = {field: next(iter(configs.values()))}
    if field == "ratio":
        select["of"] = "n0"
    steps = [step(range(layers), "topk" if field == "k" else "ratio", **select)]
    return build("lat", layers, {"kind": "attn_col"}, steps, options, special=not trained)
