"""Self-distillation: an embedding model learns to give its own vectors from fewer rows.

Nothing but texts is needed. At every step a profile of the policy is drawn, now and then none, and
the vectors move towards those of the model before, which therefore remain its index.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tokprune_rt.calibration.families import FAMILIES
from tokprune_rt.calibration.judge import Quality, VectorJudge
from tokprune_rt.calibration.passes import Passes
from tokprune_rt.calibration.search import Point, search
from tokprune_rt.files import atomic_file, check_new_folder
from tokprune_rt.loader import describe_model, resolve
from tokprune_rt.loading import choose_policy, load
from tokprune_rt.model import Model
from tokprune_rt.policy import OFF, Policy, PolicySource, find_policy, policy_hash
from tokprune_rt.tokenizer import Tokens
from tokprune_rt.train.data import Encoded, tokenizer_of
from tokprune_rt.train.embedding import Embedder, check_embedder, model_copy
from tokprune_rt.train.loop import Say, Settings, Stage, Training
from tokprune_rt.train.merging import Reducer
from tokprune_rt.train.runs import checkpoints_of
from tokprune_rt.train.tasks import Floats, divergence

PLAIN = "policy"
"""How reports call the policy's own numbers, beside its profiles."""

# Texts that the search for a policy looks at, and those below which merging saves no time.
_SEARCHED, _SHORT = 64, 24
_MIN_TEXTS, _HELD_OUT = 20, 512


@dataclass(frozen=True)
class DistilRun:
    """What `distil` is given.

    Attributes:
        source: the embedding model, as `load` takes it; also the teacher.
        out: the folder to write; until it is complete, checkpoints lie in a hidden one beside it.
        texts: to learn from.
        held_out: to choose by and to report on; None: every tenth of the texts, at most 512.
        policy: as `load` takes it; "auto" is the folder's own or, where there is none, a merging
            policy with ``target``.
        target: multiply-adds of that policy, of the dense model's.
        profiles: those that the model shall serve beside the policy's own numbers; None: all.
        max_length: tokens to which texts are cut in training; None: the model's limit.
        settings: of the training loop.
        say: receives lines of progress.
    """

    source: str
    out: Path
    texts: Sequence[str]
    held_out: Sequence[str] | None = None
    policy: PolicySource = "auto"
    target: float = 0.5
    profiles: Sequence[str] | None = None
    max_length: int | None = None
    settings: Settings = field(default_factory=Settings)
    say: Say = print


@dataclass(frozen=True)
class DistilSchedule:
    """How long and how.

    Attributes:
        epochs: passes over the texts.
        steps: instead; fewer texts are drawn where one pass would be more.
        rate: learning rate.
        ranking: weight of the agreement about neighbours in the batch.
        temperature: of the similarities there.
        dense: share of the steps without a policy, so that the model's dense vectors stay.
    """

    epochs: int = 1
    steps: int | None = None
    rate: float = 1e-4
    ranking: float = 0.2
    temperature: float = 0.05
    dense: float = 0.1


@dataclass(frozen=True)
class Served:
    """One profile on the held-out texts, compared with the dense vectors of the model before.

    ``macs``: of the dense model's.
    """

    profile: str
    macs: float
    before: Quality
    after: Quality


@dataclass(frozen=True)
class Distilled:
    """What `distil` wrote."""

    folder: Path
    rows: list[Served]


@dataclass(frozen=True)
class TowardsDense:
    """What is learned: vectors near the dense ones, with the same neighbours among them."""

    ranking: float
    temperature: float

    metric = "cosine"

    def aligned(self, targets: Tensor, real: Tensor) -> Tensor:
        """The targets as they are."""
        return targets

    def loss(self, vectors: Tensor, dense: Tensor) -> Tensor:
        """Mean over a batch, of vectors and their targets [B, e] of length 1."""
        found = functional.normalize(vectors.float(), dim=-1)
        loss = 1 - (found * dense).sum(dim=-1).mean()
        if len(found) < 3 or not self.ranking:
            return loss
        # Each vector as a query on the dense index of the batch's other texts.
        others = ~torch.eye(len(found), dtype=torch.bool, device=found.device)
        rows = [
            (queries @ dense.T)[others].view(len(found), -1) / self.temperature
            for queries in (found, dense)
        ]
        return loss + self.ranking * divergence(rows[0], rows[1], 1.0)

    def score(self, vectors: Sequence[Floats], data: Encoded) -> float:
        """Mean cosine to the dense vectors, in points."""
        found = functional.normalize(torch.from_numpy(np.stack(vectors)), dim=-1)
        return 100 * float((found * data.targets).sum(dim=-1).mean())


def distil(run: DistilRun, schedule: DistilSchedule | None = None) -> Distilled:
    """Fine-tune an embedding model towards its own dense vectors under a policy.

    Raises:
        ValueError: the model has no embeddings, the policy has steps that training does not
            execute, an unknown profile, or too few texts.
    """
    schedule = schedule or DistilSchedule()
    check_new_folder(run.out)
    source = resolve(run.source)
    config, setup = describe_model(source)
    check_embedder(source, setup)
    learning, held_out = _split(run)
    tokens = _tokens(source, run, learning)
    drawn, epochs = _drawn(tokens, schedule, run.settings)
    judged = _tokens(source, run, held_out)
    model = load(source, "off", precision="fp32")
    content = b"".join(item.ids.tobytes() for item in (*drawn, *judged))
    data = hashlib.sha256(content).hexdigest()[:16]
    if run.policy == OFF:
        raise ValueError('policy: found "off"; a model is distilled under a policy that prunes')
    policy = choose_policy(run.policy, source, config, setup)
    if policy is None:
        policy = _merging_policy(run, model, drawn[:_SEARCHED], data)
    served = _profiles(run, policy)
    for name in served:
        Reducer(policy, name)  # refuses what it does not execute
    facts = {
        "method": "distil",
        **asdict(schedule),
        "model": str(source),
        "policy": policy_hash(policy),
        "profiles": [name or PLAIN for name in served],
        "max_length": run.max_length,
        "data": data,
    }
    vectors = _dense_vectors(run, model, [*drawn, *judged], data)
    embedder = Embedder(source)
    student = Training(
        embedder,
        TowardsDense(schedule.ranking, schedule.temperature),
        Encoded(drawn, vectors[: len(drawn)]),
        Encoded(judged, vectors[len(drawn) :]),
        run.settings,
        checkpoints_of(run.out),
        run.say,
        facts,
    )
    reducers = {name: Reducer(policy, name) for name in served}

    def chooser() -> Reducer | None:
        if not embedder.model.training:
            return reducers[None]
        return _draw(reducers, schedule.dense)

    run.say(f"policy: {policy.name or policy_hash(policy)[:12]}; {len(drawn)} texts to learn from")
    student.run_stage(Stage("distil", epochs, schedule.rate, chooser))
    judge = VectorJudge(vectors[len(drawn) :].numpy())
    before = _measured(load(source, policy, precision="fp32"), judged, served, judge)
    with model_copy(run.out, source, embedder.model) as work:
        policy.save(work)
        after = _measured(load(work, precision="fp32"), judged, served, judge)
        rows = [Served(name, after[name][1], before[name][0], after[name][0]) for name in after]
        remembered = {
            **facts,
            "base_model": Path(run.source).name,
            "seed": run.settings.seed,
            "texts": len(drawn),
            "held_out": len(judged),
            "rows": [_shown(row) for row in rows],
        }
        del remembered["model"]
        replace(policy, provenance=remembered).save(work)
    shutil.rmtree(checkpoints_of(run.out))
    return Distilled(run.out, rows)


def _split(run: DistilRun) -> tuple[list[str], list[str]]:
    texts = [text for text in run.texts if text.strip()]
    if len(texts) < _MIN_TEXTS:
        raise ValueError(f"found {len(texts)} texts; distillation needs {_MIN_TEXTS} or more")
    if run.held_out is not None:
        held_out = [text for text in run.held_out if text.strip()]
        if len(held_out) < 2:
            raise ValueError(f"found {len(held_out)} held-out texts; 2 or more are needed")
        return texts, held_out
    order = np.random.default_rng(run.settings.seed).permutation(len(texts))
    cut = min(_HELD_OUT, len(texts) // 10)
    return [texts[i] for i in order[cut:]], [texts[i] for i in order[:cut]]


def _tokens(source: Path, run: DistilRun, texts: Sequence[str]) -> list[Tokens]:
    _, setup = describe_model(source)
    name = setup.default_prompt_name
    prefix = setup.prompts[name] if name is not None else ""
    if prefix and not setup.include_prompt:
        raise ValueError(
            f"{source} leaves its default prompt {name!r} out of the mean, which training does not"
        )
    return list(tokenizer_of(source, run.max_length).tokenize([prefix + text for text in texts]))


def _drawn(
    tokens: list[Tokens], schedule: DistilSchedule, settings: Settings
) -> tuple[list[Tokens], int]:
    """The texts to learn from, and the passes over them."""
    if schedule.steps is None:
        return tokens, schedule.epochs
    size = settings.batch_size
    epochs = -(-schedule.steps // -(-len(tokens) // size))
    count = min(len(tokens), size * -(-schedule.steps // epochs))
    order = np.random.default_rng(settings.seed).permutation(len(tokens))[:count]
    return [tokens[i] for i in order], epochs


def _profiles(run: DistilRun, policy: Policy) -> list[str | None]:
    if run.profiles is None:
        return [None, *policy.profiles]
    for name in run.profiles:
        policy.resolve(name)  # raises ValueError for an unknown one
    return [None, *run.profiles]


def _draw(reducers: Mapping[str | None, Reducer], dense: float) -> Reducer | None:
    """The profile of a step: none, the policy's own numbers as often as all others, or another."""
    # PyTorch's generator is part of a checkpoint.
    first, second = torch.rand(2).tolist()
    if first < dense:
        return None
    names = list(reducers)
    if len(names) == 1 or second < 0.5:
        return reducers[None]
    return reducers[names[1 + int((second - 0.5) * 2 * (len(names) - 1))]]


def _merging_policy(run: DistilRun, model: Model, tokens: list[Tokens], data: str) -> Policy:
    """Merging with so many multiply-adds, each layer's share found by calibration's search."""
    if not 0 < run.target < 1:
        raise ValueError(f"target: found {run.target}; allowed: above 0, below 1")
    folder = checkpoints_of(run.out) / f"policy-{data}-{run.target:g}"
    known = find_policy(folder)
    if known is None:
        passes = Passes(model, tokens)
        dense, all_macs = passes.run(None)
        judge, family = VectorJudge(dense), FAMILIES["merge"]
        options: dict[str, Any] = {"protect_first": True, "protect_last": True}
        options |= {"skip_below": _SHORT, "name": "distilled"}

        def evaluate(shares: tuple[float, ...]) -> Point:
            found, macs = passes.run(passes.plan(family.document(shares, None, options)))
            return Point(shares, macs / all_macs, judge.loss(found))

        run.say(f"searching where to merge for {run.target:.0%} of the multiply-adds")
        path = search(evaluate, model.config.layers, lambda point: point.macs <= run.target)
        last = path[-1]
        if last.macs > run.target:
            raise ValueError(f"target: found {run.target}; merging reaches {last.macs:.2f} here")
        light = min(path, key=lambda point: abs(point.macs - (1 + run.target) / 2))
        document = family.document(last.shares, {"light": light.shares}, options)
        folder.mkdir(parents=True, exist_ok=True)
        _bound(document, model).save(folder)
        known = find_policy(folder)
        assert known is not None
        run.say(f"{last.macs:.1%} of the multiply-adds, cosine {1 - last.loss:.4f} untrained")
    return _bound(known, model)


def _bound(policy: PolicySource, model: Model) -> Policy:
    found = choose_policy(policy, model.folder, model.config, model.setup)
    assert found is not None
    return found


def _dense_vectors(run: DistilRun, model: Model, tokens: list[Tokens], data: str) -> Tensor:
    """The teacher's vectors, float32 [n, e] of length 1; kept for the run's next start."""
    path = checkpoints_of(run.out) / f"dense-{data}.npy"
    if path.exists():
        return torch.from_numpy(np.load(path))
    run.say(f"dense vectors of {len(tokens)} texts")
    found, _ = Passes(model, tokens).run(None)
    vectors = functional.normalize(torch.from_numpy(found), dim=-1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        np.save(file, vectors.numpy())
    return vectors


def _measured(
    model: Model, tokens: list[Tokens], served: Sequence[str | None], judge: VectorJudge
) -> dict[str, tuple[Quality, float]]:
    """By profile: how near, and multiply-adds of the dense model's."""
    passes = Passes(model, tokens)
    dense, all_macs = passes.run(None)
    found = {OFF: (judge.quality(dense), 1.0)}
    for name in served:
        vectors, macs = passes.run(model.engine.plan(name))
        found[name or PLAIN] = (judge.quality(vectors), macs / all_macs)
    return found


def _shown(row: Served) -> dict[str, Any]:
    def rounded(quality: Quality) -> dict[str, float]:
        return {name: round(value, 5) for name, value in quality.to_dict().items()}

    return {
        "profile": row.profile,
        "macs": round(row.macs, 4),
        "before": rounded(row.before),
        "after": rounded(row.after),
    }
