"""Drives a sanitized ``_core`` from a build folder through good and bad input, without torch.

Usage: python sanitized_engine.py BUILD_FOLDER. test_sanitizers.py runs it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import merge_plans
import numpy as np
import random_model as rm

BATCHES = ([1], [2, 1], [17, 1, 16, 15], [80, 33, 5, 64, 1, 24, 25], [9] * 12)
# Enough for three threads to run parts of their own.
LARGE = [80, 40] * 14
MERGING = ("hidden theta", "keys energy", "everywhere", "merge, drop", "previous", "protected")


def documents() -> list[dict[str, Any]]:
    merging = merge_plans.plans()
    return [*rm.plans().values(), *(merging[name] for name in MERGING)]


def precisions(core: Any, level: str) -> list[str]:
    return ["fp32", "bf16", "int8", *(["bf16x3"] if core.kernels.has_tiles(level) else [])]


def run_everything(core: Any) -> None:
    levels = core.isa_levels()
    for level in levels:
        for precision in precisions(core, level):
            # Every model at float32; the one with the oddest sizes otherwise.
            for name in rm.MODELS if precision == "fp32" else ["mpnet"]:
                shape = rm.config(**rm.MODELS[name])
                threads = 3 if level == levels[-1] else 1
                # A fresh encoder each time: its workspace grows with the batches below.
                encoder = packed_apart(core, shape, threads, level, precision)
                run_plans(core, encoder, shape)
                print(level, precision, name, flush=True)


def packed_apart(core: Any, shape: rm.Config, *arguments: Any) -> Any:
    """An encoder on packed weights in memory of exactly their size, for reads beyond to show."""
    weights = rm.tensors(shape)
    packed = core.Encoder(shape, weights, *arguments).packed.copy()
    shapes = {name: array.shape for name, array in weights.items()}
    return core.Encoder(shape, shapes, *arguments, packed=packed)


def run_large_calls(core: Any) -> None:
    level = core.isa_levels()[-1]
    shape = rm.config()
    batch = [rm.tokens(shape, size, seed) for seed, size in enumerate(LARGE)]
    for precision in precisions(core, level):
        encoder = core.Encoder(shape, rm.tensors(shape), 3, level, precision)
        for plan in (None, core.Plan(rm.plans()["threshold drop mid"])):
            out = rm.forward(encoder, batch, plan=plan, trace=True)
            assert np.isfinite(out["hidden"]).all()


def run_plans(core: Any, encoder: Any, shape: rm.Config) -> None:
    for document in documents():
        if not rm.fits(shape, document):
            continue
        plan = core.Plan(document)
        for sizes in BATCHES:
            batch = [rm.tokens(shape, size, seed) for seed, size in enumerate(sizes)]
            total = sum(sizes)
            extras = {
                "segment_ids": np.arange(total, dtype=np.int32) % 3,
                "protect": (np.arange(total) % 7 == 0).astype(np.uint8),
                "pool_skip": np.minimum(np.array(sizes, dtype=np.int32) - 1, 4),
            }
            out = rm.forward(encoder, batch, plan=plan, trace=True)
            assert np.isfinite(out["hidden"]).all()
            assert np.isfinite(
                rm.forward(encoder, batch, plan=plan, normalize=True, **extras)["hidden"]
            ).all()
            if shape["pooling"]:
                rm.forward(encoder, batch, plan=plan, want="pooled")
            if shape["head"] != "none":
                rm.forward(encoder, batch, plan=plan, want="logits")


def run_broken_weights(core: Any) -> None:
    """Weights that are not finite give worthless numbers, never an invalid access."""
    for value in (np.nan, -np.inf, 3e38):
        for name in ("embeddings.word", "layers.0.q.weight"):
            shape = rm.config()
            weights = rm.tensors(shape)
            weights[name][...] = value
            for level in core.isa_levels():
                for precision in precisions(core, level):
                    run_worthless(core, core.Encoder(shape, weights, 1, level, precision), shape)


def run_worthless(core: Any, encoder: Any, shape: rm.Config) -> None:
    for document in documents():
        if not rm.fits(shape, document):
            continue
        batch = [rm.tokens(shape, size, 0) for size in (1, 33, 80)]
        rm.forward(encoder, batch, plan=core.Plan(document))


def refused(call: Callable[[], Any], error: type[Exception] = ValueError) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"{error.__name__} was not raised")


def ints(*values: int) -> Any:
    return np.array(values, dtype=np.int32)


def run_bad_batches(core: Any) -> None:
    shape = rm.config()
    encoder = core.Encoder(shape, rm.tensors(shape), 2)
    good = rm.tokens(shape, 10, 0)
    lowest, highest = -(2**31), 2**31 - 1

    def call(ids: Any = good.ids, bounds: Any = None, **options: Any) -> Callable[[], Any]:
        return lambda: encoder.forward(ids, ints(0, 10) if bounds is None else bounds, **options)

    call()()
    for bad in (-1, shape["vocab_size"], lowest, highest):
        ids = good.ids.copy()
        ids[7] = bad
        refused(call(ids))
        refused(call(token_type_ids=ids))
    for bounds in (
        (0, 9),
        (0, 11),
        (1, 10),
        (0, 0, 10),
        (0, 12, 10),
        (0, highest, 10),
        (0, 5, lowest, 10),
        (0, 5, highest, lowest, 10),
        (0, lowest),
        (0,),
        (),
    ):
        refused(call(bounds=ints(*bounds)))
    long = rm.tokens(shape, shape["max_positions"] + 1, 0)
    refused(call(long.ids, ints(0, len(long))))
    refused(call(good.ids.reshape(2, 5)))
    refused(call(bounds=ints(0, 10).reshape(1, 2)))
    for name in ("token_type_ids", "segment_ids", "pool_skip"):
        refused(call(**{name: ints(*range(4))}))
    refused(call(protect=np.zeros(3, dtype=np.uint8)))
    for skip in (lowest, -1, 10, highest):
        call(pool_skip=ints(skip))()
    call(segment_ids=np.full(10, lowest, dtype=np.int32))()
    refused(call(good.ids.astype(np.int64)), TypeError)
    refused(call(bounds=np.array([0.0, 10.0])), TypeError)
    refused(call(np.repeat(good.ids, 2)[::2]), TypeError)
    refused(call(None), TypeError)
    refused(call(want="everything"))
    refused(call(plan=core.Plan(rm.plan(rm.score("random"), [], layers=4))))
    short = rm.score("table", table=np.zeros(3, dtype=np.float32))
    refused(call(plan=core.Plan(rm.plan(short, []))))
    refused(call(plan=core.Plan(rm.plan(rm.gate(40, 1), [rm.step(0, "pre", "drop", "topk", k=3)]))))


def run_bad_plans(core: Any) -> None:
    column = rm.score("attn_col")
    good = rm.plan(column, rm.every_layer("mid", "drop", "topk", k=3))
    core.Plan(good)
    for key in good:
        refused(lambda key=key: core.Plan({k: v for k, v in good.items() if k != key}))
        refused(lambda key=key: core.Plan(good | {key: object()}), (TypeError, ValueError))
    refused(lambda: core.Plan(good | {"more": 1}))
    for layer in (-1, rm.LAYERS, 2**31 - 1):
        bad = rm.step(layer, "mid", "drop", "topk", k=3)
        refused(lambda bad=bad: core.Plan(rm.plan(column, [bad])))
    for changes in ({"score": 1}, {"score": -1}, {"site": "pre"}, {"action": "merge"}):
        bad = rm.step(0, "mid", "drop", "topk", k=3) | changes
        refused(lambda bad=bad: core.Plan(rm.plan(column, [bad])))
    mid = rm.step(0, "mid", "drop", "topk", k=3)
    for sign in (0, 2, -0.5, float("nan")):
        entropy = rm.entropy("row_entropy", sign=sign)
        refused(lambda entropy=entropy: core.Plan(rm.plan(entropy, [mid])))
    for key in ("heads", "from", "sign"):
        some = {k: v for k, v in rm.entropy("col_entropy").items() if k != key}
        refused(lambda some=some: core.Plan(rm.plan(some, [mid])))
    gate = rm.gate(48, 2)
    first = gate["layers"][0]
    at = rm.step(0, "pre", "drop", "topk", k=3)
    core.Plan(rm.plan(gate, [at]))
    refused(lambda: core.Plan(rm.plan(gate, [at | {"site": "mid"}])))
    refused(lambda: core.Plan(rm.plan(gate | {"softmax": True}, [at])))
    refused(lambda: core.Plan(rm.plan(gate | {"activation": "softplus"}, [at])))
    refused(lambda: core.Plan(rm.plan(gate | {"layers": {1: first}}, [at])))
    refused(lambda: core.Plan(rm.plan(gate | {"layers": {0: 3}}, [at])), TypeError)
    refused(lambda: core.Plan(rm.plan(gate | {"layers": {"0": first}}, [at])), TypeError)
    for name, tensor in first.items():
        missing = {key: value for key, value in first.items() if key != name}
        for wrong in (tensor[:0], tensor[:-1], tensor[None], tensor.reshape(-1)[:0]):
            if name == "output.weight" and len(wrong) == 1 and wrong.ndim == 2:
                continue
            broken = {0: first | {name: np.ascontiguousarray(wrong)}}
            refused(lambda broken=broken: core.Plan(rm.plan(gate | {"layers": broken}, [at])))
        refused(lambda missing=missing: core.Plan(rm.plan(gate | {"layers": {0: missing}}, [at])))
        double = {0: first | {name: tensor.astype(np.float64)}}
        refused(
            lambda double=double: core.Plan(rm.plan(gate | {"layers": double}, [at])), TypeError
        )
    choice = rm.predictor(48, rm.RATIOS)
    column_at = rm.score("random")

    def predicted(site: str = "pre", **changes: Any) -> dict[str, Any]:
        fields = {k: v for k, v in (choice | changes).items() if v is not None}
        return rm.step(0, site, "drop", "predicted_ratio", **fields)

    core.Plan(rm.plan(column_at, [predicted()]))
    refused(lambda: core.Plan(rm.plan(column_at, [predicted("mid")])))
    refused(lambda: core.Plan(rm.plan(column_at, [predicted()], protect={"first": False})))
    for ratios in ([], [0.5], [0.5] * 5):
        refused(lambda ratios=ratios: core.Plan(rm.plan(column_at, [predicted(ratios=ratios)])))
    for name in choice:
        refused(lambda name=name: core.Plan(rm.plan(column_at, [predicted(**{name: None})])))
    bins = rm.step(0, "mid", "drop", "rank_bins", bits=[], bin_rule="int")
    refused(lambda: core.Plan(rm.plan(column, [bins])))
    refused(lambda: core.Plan(rm.plan(column, good["steps"][::-1])))


def run_bad_models(core: Any) -> None:
    shape = rm.config()
    weights = rm.tensors(shape)
    for name in weights:
        missing = {key: value for key, value in weights.items() if key != name}
        refused(lambda missing=missing: core.Encoder(shape, missing))
        for wrong in (weights[name][:-1], weights[name][None], weights[name].reshape(-1)[:0]):
            if name == "embeddings.position" and wrong.ndim == 2 and len(wrong) == 0:
                continue
            replaced = weights | {name: np.ascontiguousarray(wrong)}
            refused(lambda replaced=replaced: core.Encoder(shape, replaced))
        double = weights | {name: weights[name].astype(np.float64)}
        refused(lambda double=double: core.Encoder(shape, double), TypeError)
    most = 2**63 - 1
    for key, value in shape.items():
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        for bad in (0, -1, -most - 1, most):
            if (key, bad) in {("position_offset", 0), ("position_pad_id", -1)}:
                continue
            if key == "position_pad_id" and bad < most:
                continue
            if key == "type_vocab_size" and bad == 0:
                continue
            refused(lambda key=key, bad=bad: core.Encoder(shape | {key: bad}, weights))
    for changes in (
        {"heads": 7},
        {"activation": "softplus"},
        {"pooling": ["median"]},
        {"head": "last"},
        {"layer_norm_eps": -1.0},
        {"more": 1},
    ):
        refused(lambda changes=changes: core.Encoder(shape | changes, weights))
    for isa in ("sse9", "AVX2", " "):
        refused(lambda isa=isa: core.Encoder(shape, weights, 1, isa))
    refused(lambda: core.Encoder(shape, weights, 1, "", "int4"))


def run_bad_packed_weights(core: Any) -> None:
    shape = rm.config()
    weights = rm.tensors(shape)
    shapes = {name: array.shape for name, array in weights.items()}

    def refuse(known: dict[str, Any], packed: Any, precision: str) -> None:
        refused(lambda: core.Encoder(shape, known, 1, "", precision, packed=packed))

    for precision in ("fp32", "bf16", "int8"):
        packed = core.Encoder(shape, weights, 1, "", precision).packed.copy()
        for wrong in (packed[:-1], packed[:1], np.append(packed, packed)):
            refuse(shapes, wrong, precision)
        for name, size in shapes.items():
            refuse(shapes | {name: (size[0] + 1, *size[1:])}, packed, precision)


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    import _core

    run_everything(_core)
    run_large_calls(_core)
    run_broken_weights(_core)
    run_bad_batches(_core)
    run_bad_plans(_core)
    run_bad_models(_core)
    run_bad_packed_weights(_core)
    print("done")


if __name__ == "__main__":
    main()
