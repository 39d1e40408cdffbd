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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokprune_rt.calibration.judge import Quality, VectorJudge
from tokprune_rt.calibration.passes import Passes
from tokprune_rt.loader import describe_model, resolve
from tokprune_rt.loading import choose_policy, load
from tokprune_rt.model import Model
from tokprune_rt.policy import (
    DEFAULT,
    OFF,
    Policy,
    PolicySource,
    find_policy,
    parse_policy,
    policy_hash,
    weights_digest,
)
from tokprune_rt.tokenizer import Tokens
from tokprune_rt.train.data import Encoded, tokenizer_of
from tokprune_rt.train.dense_goal import DenseTeacher, TowardsDense
from tokprune_rt.train.embedding import Embedder, check_embedder, model_copy
from tokprune_rt.train.loop import Training
from tokprune_rt.train.masked import Pass
from tokprune_rt.train.merging import Reducer, Rows
from tokprune_rt.train.merging_search import merging_policy
from tokprune_rt.train.runs import checkpoints_of, model_facts, one_at_a_time
from tokprune_rt.train.stage import Say, Settings, Stage
from tokprune_rt.train.tasks import Floats

# Texts that the search for a policy looks at.
_SEARCHED = 64
_MIN_TEXTS, _HELD_OUT = 20, 512
# Share of the steps with a policy that have its own numbers, when there are profiles, too.
_OWN = 0.7


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
        ranking, temperature, rows: see `TowardsDense`.
        dense: share of the steps without a policy, so that the model's dense vectors stay.
    """

    epochs: int = 1
    steps: int | None = None
    rate: float = 1e-4
    ranking: float = 0.2
    temperature: float = 0.05
    rows: float = 1.0
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


@one_at_a_time
def distil(run: DistilRun, schedule: DistilSchedule | None = None) -> Distilled:
    """Fine-tune an embedding model towards its own dense vectors under a policy.

    Raises:
        ValueError: the model has no embeddings, the policy has steps that training does not
            execute, an unknown profile, or too few texts.
    """
    schedule = schedule or DistilSchedule()
    source = resolve(run.source)
    check_embedder(source, describe_model(source)[1])
    learning, held_out = _split(run)
    tokens = _tokens(source, run, learning)
    drawn, epochs = _drawn(tokens, schedule, run.settings)
    judged = _tokens(source, run, held_out)
    digest = hashlib.sha256(b"".join(item.ids.tobytes() for item in (*drawn, *judged)))
    data = digest.hexdigest()[:16]
    policy = _policy(run, source, drawn, data)
    served = _profiles(run, policy)
    reducers = {name: Reducer(policy, name) for name in served}
    facts = {
        "method": "distil",
        **asdict(schedule),
        **model_facts(source),
        "policy": policy_hash(policy),
        "profiles": [name or DEFAULT for name in served],
        "max_length": run.max_length,
        "data": data,
    }
    before, vectors = _measured(_runtime(source, policy), judged, served)
    embedder, teacher = Embedder(source), DenseTeacher(Embedder(source), run.settings.device)
    goal = TowardsDense(schedule.ranking, schedule.temperature, schedule.rows)
    training = Training(
        embedder,
        goal,
        Encoded(drawn, torch.zeros(len(drawn), 0)),
        Encoded(judged, torch.from_numpy(vectors)),
        run.settings,
        checkpoints_of(run.out),
        run.say,
        facts,
    )

    def chooser() -> Reducer | None:
        if not embedder.model.training:
            return reducers[None]
        return _draw(reducers, schedule.dense)

    def loss(found: Tensor, _: Tensor, passed: Pass, __: float) -> Tensor:
        assert isinstance(passed, Rows)
        return goal.distance(found, passed, *teacher.look(passed))

    start = ", ".join(f"{name} {row.quality.value:.4f}" for name, row in before.items())
    run.say(f"{len(drawn)} texts to learn from; cosines before: {start}")
    training.run_stage(Stage("distil", epochs, schedule.rate, chooser, loss, whole=True))
    with model_copy(run.out, source, embedder.model) as work:
        policy.save(work)
        after, _ = _measured(_runtime(work, "auto"), judged, served, vectors)
        rows = [
            Served(name, row.macs, before[name].quality, row.quality) for name, row in after.items()
        ]
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


def _runtime(folder: Path, policy: PolicySource) -> Model:
    """The model in fp32, on as many threads as training has."""
    return load(folder, policy, precision="fp32", threads=torch.get_num_threads())


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


def _policy(run: DistilRun, source: Path, drawn: list[Tokens], data: str) -> Policy:
    if run.policy == OFF:
        raise ValueError('policy: found "off"; a model is distilled under a policy that prunes')
    config, setup = describe_model(source)
    weights = str(weights_digest(setup.encoder_folder))[:16]
    folder = checkpoints_of(run.out) / f"policy-{weights}-{data}-{run.target:g}"
    found = choose_policy(run.policy, source, config, setup)
    if found is None and find_policy(folder) is None:
        model = _runtime(source, "off")
        policy = merging_policy(model, drawn[:_SEARCHED], run.target, run.say)
        folder.mkdir(parents=True, exist_ok=True)
        parse_policy(policy).save(folder)
    found = found or choose_policy(folder, source, config, setup)
    assert found is not None
    return found


def _profiles(run: DistilRun, policy: Policy) -> list[str | None]:
    if run.profiles is None:
        return [None, *policy.profiles]
    for name in run.profiles:
        policy.resolve(name)  # raises ValueError for an unknown one
    return [None, *run.profiles]


def _draw(reducers: Mapping[str | None, Reducer], dense: float) -> Reducer | None:
    """The profile of a step: none, the policy's own numbers, or more rarely another."""
    # PyTorch's generator is part of a checkpoint.
    first, second = torch.rand(2).tolist()
    if first < dense:
        return None
    names = list(reducers)
    if len(names) == 1 or second < _OWN:
        return reducers[None]
    return reducers[names[1 + int((second - _OWN) / (1 - _OWN) * (len(names) - 1))]]


class _Measured(NamedTuple):
    quality: Quality
    macs: float


def _measured(
    model: Model,
    tokens: list[Tokens],
    served: Sequence[str | None],
    index: Floats | None = None,
) -> tuple[dict[str, _Measured], Floats]:
    """Each profile, compared with the vectors ``index``, by default the model's own dense ones;
    and those, of length 1."""
    passes = Passes(model, tokens)
    dense, all_macs = passes.run(None)
    if index is None:
        index = dense / np.linalg.norm(dense, axis=1, keepdims=True)
    judge = VectorJudge(index)
    found = {OFF: _Measured(judge.quality(dense), 1.0)}
    for name in served:
        vectors, macs = passes.run(model.engine.plan(name))
        found[name or DEFAULT] = _Measured(judge.quality(vectors), macs / all_macs)
    return found, index


def _shown(row: Served) -> dict[str, Any]:
    def rounded(quality: Quality) -> dict[str, float]:
        return {name: round(value, 5) for name, value in quality.to_dict().items()}

    return {
        "profile": row.profile,
        "macs": round(row.macs, 4),
        "before": rounded(row.before),
        "after": rounded(row.after),
    }
