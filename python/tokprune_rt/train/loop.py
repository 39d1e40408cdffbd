"""Gradient steps, evaluation and checkpoints of one training stage after another."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import get_scheduler

from tokprune_rt.files import atomic_file
from tokprune_rt.train.data import Encoded, collate, parts_of, training_batches
from tokprune_rt.train.masked import MaskedEncoder, logits_of, rows_of
from tokprune_rt.train.memory import Trimming
from tokprune_rt.train.stage import Say, Settings, Stage, parameter_groups
from tokprune_rt.train.state import Progress, Telling, copied, random_state, set_random_state
from tokprune_rt.train.tasks import Floats
from tokprune_rt.train.vocabulary import words_of

CHECKPOINT = "checkpoint.pt"

# Logits of one layer's attention that a part of a step may have on a CPU: 16 MB, which its caches
# and the allocator hold on to. A step of `train top` on 8 texts of 512 tokens takes 0.3 of the time
# that it took at once, with a quarter of the memory.
_CACHED_LOGITS = 4_000_000

# Settings with which a run may go on differently.
_INDIFFERENT = ("save_seconds", "device")


class Goal(Protocol):
    """What a training needs of a `tasks.Task`."""

    def aligned(self, targets: Tensor, real: Tensor) -> Tensor:
        """See `tasks.Task`."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See `tasks.Task`."""

    def score(self, logits: Sequence[Floats], data: Encoded) -> float:
        """See `tasks.Task`."""

    def remark(self, logits: Sequence[Floats]) -> str | None:
        """See `tasks.Task`."""


class OtherRunError(ValueError):
    """The checkpoint at ``path`` is of a run with other settings, ``before`` by name."""

    def __init__(self, path: Path, before: Mapping[str, Any]) -> None:
        self.path, self.before = path, before
        super().__init__(self.told(lambda name, value: f"{name} {value!r}"))

    def told(self, call: Callable[[str, Any], str]) -> str:
        """The message; ``call`` says a setting and its value as the user knows them."""
        differences = ", ".join(call(name, value) for name, value in self.before.items())
        return (
            f"{self.path} is of a run with {differences}; run with the same to go on, or delete "
            f"{self.path.parent} to begin anew"
        )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What a user who wants to go on with the run ``before`` gives otherwise."""
    names = [name for name in now if before.get(name) != now[name]]
    told = [name for name in names if name in before]
    if before.get("speedup"):
        # Its target was measured, and is told by what was asked for.
        told = [name for name in told if name not in ("target", "speedup")]
        if before["speedup"] != now.get("speedup"):
            told.append("speedup")
    return {name: before.get(name) for name in told or names}


def lengths_of(data: Encoded) -> list[int]:
    """Tokens of every sequence."""
    return [len(item) for item in data.tokens]


class Training:
    """Runs stages on one model; resumes exactly where a run with the same settings stopped.

    Args:
        encoder: the model.
        task: what is learned.
        train, dev: the examples.
        settings: see there.
        folder: where the checkpoint lies.
        say: receives lines of progress.
        recipe: what else decides the result; a checkpoint of anything different is refused.

    Raises:
        OtherRunError: the checkpoint in ``folder`` is of another run.
    """

    def __init__(
        self,
        encoder: MaskedEncoder,
        task: Goal,
        train: Encoded,
        dev: Encoded,
        settings: Settings,
        folder: Path,
        say: Say,
        recipe: Mapping[str, Any],
    ) -> None:
        self.encoder, self.task, self.settings = encoder, task, settings
        self.train, self.dev, self.say = train, dev, say
        self._path = folder / CHECKPOINT
        self._device = torch.device(settings.device)
        nn.Module.to(self.encoder.model, self._device)
        self._saved: dict[str, Any] | None = None
        if self._path.exists():
            self._saved = torch.load(self._path, map_location=self._device, weights_only=True)
        decisive = {k: v for k, v in asdict(settings).items() if k not in _INDIFFERENT}
        self._learning, self._lengths = train, lengths_of(train)
        self._facts = {**decisive, **recipe, "examples": [len(train), len(dev)]}
        self._check_same_run()
        if settings.bf16:  # which nobody may have asked for
            say("the steps' products are in bfloat16")
        torch.manual_seed(settings.seed)

    def beside_checkpoint(self, name: str) -> Path:
        """A path for what else this run keeps, which no other run would take for its own."""
        key = hashlib.sha256(repr(sorted(self._facts.items())).encode()).hexdigest()[:16]
        return self._path.with_name(f"{key}-{name}")

    def inputs(self, data: Encoded, places: Iterable[int]) -> dict[str, Tensor]:
        """A padded batch of the examples ``places``."""
        config = self.encoder.model.config
        typed = getattr(config, "type_vocab_size", 0) > 1
        tokens = [data.tokens[i] for i in places]
        return collate(tokens, config.pad_token_id or 0, typed, self._device)

    def has_done(self, name: str) -> bool:
        """Whether the stage of this name was completed by an earlier run."""
        return name in self._done()

    def run_stage(self, stage: Stage) -> float:
        """Train, and return the dev score of the weights that the stage ends with, in points."""
        if self.has_done(stage.name):
            return self._restore_done(stage)
        self._learning = stage.examples or self.train
        self._lengths = lengths_of(self._learning)
        with words_of(self.encoder.model, chain(self._learning.tokens, self.dev.tokens)):
            state = self._run(stage)
        self._finish(stage, state.best_score)
        return state.best_score

    def _run(self, stage: Stage) -> Progress:
        model = self.encoder.model
        groups = parameter_groups(model, stage, self.settings.weight_decay)
        optimizer = torch.optim.AdamW(groups, fused=True)
        per_epoch = -(-len(self._learning) // self.settings.batch_size)
        total = max(1, per_epoch * stage.epochs)
        schedule = get_scheduler("linear", optimizer, int(self.settings.warm_up * total), total)
        state = Progress()
        if self._saved is not None and self._saved["stage"] == stage.name:
            self._load(stage, optimizer, schedule, state)
        telling = Telling(self.say, stage.name, stage.epochs, total, state.taken)
        saved_at, trimming = time.monotonic(), Trimming()
        while state.epoch < stage.epochs and not self._gave_up(stage, state):
            batches = self._batches(state.epoch)
            stage.set_training(model, True)
            while state.step < len(batches):
                self._step(stage, optimizer, schedule, batches[state.step], state, total)
                state.step += 1
                telling.step(state, len(batches))
                trimming.step()
                if time.monotonic() - saved_at > self.settings.save_seconds:
                    self._save(stage, optimizer, schedule, state)
                    saved_at = time.monotonic()
            state.epoch, state.step = state.epoch + 1, 0
            stage.set_training(model, False)
            score, kept = self.evaluate(stage.chooser(), encoder=stage.encoder)
            if not stage.keep_best or score > state.best_score:
                state.best_score, state.best_epoch = score, state.epoch
                state.best = copied(self._weights(stage))
            self._save(stage, optimizer, schedule, state)
            saved_at = time.monotonic()
            self.say(
                f"{stage.name}, epoch {state.epoch} of {stage.epochs}: dev {score:.2f}, "
                f"kept {' '.join(f'{share:.0%}' for share in kept)}, loss {state.mean_loss():.4f}"
            )
        if state.best is not None:
            self._put(stage, state.best)
        return state

    def _gave_up(self, stage: Stage, state: Progress) -> bool:
        waited = state.epoch - state.best_epoch
        return stage.keep_best and 0 < self.settings.patience <= waited

    def evaluate(
        self, chooser: Any, data: Encoded | None = None, encoder: MaskedEncoder | None = None
    ) -> tuple[float, list[float]]:
        """The task's score in points, and the share of the tokens left after each layer."""
        chosen = self.dev if data is None else data
        logits, kept = self.predict(chooser, chosen, encoder)
        note = self.task.remark(logits)
        if note is not None:
            self.say(note)
        tokens = sum(len(item) for item in chosen.tokens)
        shares = [float(count) / tokens for count in kept.sum(dim=0)]
        return self.task.score(logits, chosen), shares

    def predict(
        self, chooser: Any, data: Encoded, encoder: MaskedEncoder | None = None
    ) -> tuple[list[Floats], Tensor]:
        """Logits of every sequence as the runtime gives them, float32 [outputs] or [tokens,
        outputs], in the order given, and int64 [n, layers], the tokens that each layer left;
        ``encoder``: what the chooser is for, if not the training's own."""
        encoder = encoder or self.encoder
        encoder.model.eval()
        order = np.argsort([len(item) for item in data.tokens], kind="stable")
        logits: list[Floats] = [np.zeros(0, np.float32)] * len(data)
        kept = torch.zeros(len(data), len(encoder.layers), dtype=torch.int64)
        with torch.inference_mode(), encoder.choosing(chooser):
            for start in range(0, len(order), 2 * self.settings.batch_size):
                places = order[start : start + 2 * self.settings.batch_size]
                output, run = encoder.run(self.inputs(data, places))
                for place, rows in zip(places, rows_of(output, run.lengths), strict=True):
                    logits[place] = rows.float().cpu().numpy()
                counts = torch.stack([alive.sum(dim=1) for alive in run.kept], dim=1)
                kept[torch.from_numpy(places)] = counts.cpu()
        return logits, kept

    def sample(self, count: int) -> Encoded:
        """So many of the training examples, always the same."""
        places = np.random.default_rng(self.settings.seed).permutation(len(self.train))[:count]
        chosen = [self.train.tokens[i] for i in places]
        return Encoded(chosen, self.train.targets[torch.from_numpy(places)])

    def macs(
        self,
        chooser: Any,
        data: Encoded,
        count: Callable[[Tensor, Sequence[Tensor]], Tensor],
        encoder: MaskedEncoder | None = None,
    ) -> float:
        """Multiply-adds under hard decisions, of the dense model's; ``count`` is a method's,
        ``encoder`` as for `predict`."""
        lengths = torch.tensor([len(item) for item in data.tokens])
        _, kept = self.predict(chooser, data, encoder)
        return float(count(lengths, list(kept.T.float())))

    def _batches(self, epoch: int) -> list[Any]:
        generator = np.random.default_rng([self.settings.seed, epoch])
        return training_batches(self._lengths, self.settings.batch_size, generator)

    def _step(
        self, stage: Stage, optimizer: Any, schedule: Any, places: Any, state: Progress, total: int
    ) -> None:
        model, done = self.encoder.model, state.taken / total
        lost = 0.0
        for part in self._parts(stage, places.tolist()):
            loss = self._loss(stage, part, done) * (len(part) / len(places))
            loss.backward()
            lost += float(loss.detach())
        if not math.isfinite(lost):
            raise ValueError(
                f"{stage.name}: the loss became {lost} at step {state.taken}; try a learning rate "
                f"below {stage.rate:g}"
            )
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), self.settings.clip)
        if not torch.isfinite(norm):
            raise ValueError(
                f"{stage.name}: the gradient became {float(norm)} at step {state.taken}; try a "
                f"learning rate below {stage.rate:g}"
            )
        for module, _ in stage.own.values():
            own = list(module.parameters())
            if own:  # a budget has none
                torch.nn.utils.clip_grad_norm_(own, self.settings.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        state.taken += 1
        stage.after_step(state.taken / total)
        state.losses = [*state.losses[-199:], lost]

    def _parts(self, stage: Stage, places: list[int]) -> list[list[int]]:
        """What goes through the model at once."""
        if stage.whole or self._device.type != "cpu":
            return [places]
        return parts_of(places, self._lengths, _CACHED_LOGITS // self.encoder.heads)

    def _loss(self, stage: Stage, places: list[int], done: float) -> Tensor:
        encoder = stage.encoder or self.encoder
        targets = self._learning.targets[torch.tensor(places)].to(self._device)
        narrow = torch.autocast(self._device.type, torch.bfloat16, enabled=bool(self.settings.bf16))
        with narrow, encoder.choosing(stage.chooser()):
            output, run = encoder.run(self.inputs(self._learning, places))
            run.places = places
            logits = logits_of(output, run.real)
            targets = self.task.aligned(targets, run.real)
            if stage.loss is None:
                return self.task.loss(logits, targets)
            return stage.loss(logits, targets, run, done)

    # Checkpoints ----------------------------------------------------------------------------------

    def _check_same_run(self) -> None:
        if self._saved is None:
            return
        before, now = self._saved["run"], self._facts
        if any(before.get(name) != value for name, value in now.items()):
            raise OtherRunError(self._path, _differing(before, now))

    def _weights(self, stage: Stage) -> dict[str, dict[str, Tensor]]:
        found = {"model": self.encoder.model.state_dict()}
        return found | {name: module.state_dict() for name, (module, _) in stage.own.items()}

    def _put(self, stage: Stage, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        modules: dict[str, nn.Module] = {"model": self.encoder.model}
        modules |= {name: module for name, (module, _) in stage.own.items()}
        for name, state in weights.items():
            modules[name].load_state_dict(state)

    def _done(self) -> dict[str, Any]:
        return {} if self._saved is None else self._saved["done"]

    def _write(self, content: dict[str, Any]) -> None:
        content["run"] = self._facts
        self._saved = {name: content[name] for name in ("run", "stage", "done", "random")}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_file(self._path) as file:
                torch.save(content, file)
        except RuntimeError as error:
            # PyTorch's writer turns an interruption into an error of its own.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise

    def _save(self, stage: Stage, optimizer: Any, schedule: Any, state: Progress) -> None:
        self._write(
            {
                "stage": stage.name,
                "done": self._done(),
                "weights": self._weights(stage),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "progress": vars(state),
                "random": random_state(self._device),
            }
        )

    def _load(self, stage: Stage, optimizer: Any, schedule: Any, state: Progress) -> None:
        saved = self._saved
        assert saved is not None
        self._put(stage, saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        for name, value in saved["progress"].items():
            setattr(state, name, value)
        set_random_state(saved["random"])
        self.say(f"{stage.name}: going on after {state.taken} steps")

    def _finish(self, stage: Stage, score: float) -> None:
        done = {**self._done(), stage.name: {"score": score, "weights": self._weights(stage)}}
        # The next stage begins with the last one's model; what a method learned stays its own.
        for name, before in done.items():
            if name != stage.name:
                before["weights"].pop("model", None)
        self._write({"stage": "", "done": done, "random": random_state(self._device)})

    def _restore_done(self, stage: Stage) -> float:
        assert self._saved is not None
        done = self._saved["done"][stage.name]
        self._put(stage, done["weights"])
        set_random_state(self._saved["random"])
        self.say(f"{stage.name}: done before, dev {done['score']:.2f}")
        return float(done["score"])
