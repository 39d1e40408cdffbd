"""What happened to every token of one text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tokprune_rt.cli.options import policy_label
from tokprune_rt.cli.words import policy_words

if TYPE_CHECKING:
    from tokenizers import Encoding

    from tokprune_rt.model import Model
    from tokprune_rt.outputs import IntArray


@dataclass(frozen=True)
class TokenFate:
    """One token of the input.

    Attributes:
        position: its index in the sequence.
        token: its name in the vocabulary.
        text: the stretch of text that it stands for; empty for special tokens.
        gap: the text between the token before and this one.
        start: where the stretch begins in its text; -1 for special tokens.
        end: where it ends.
        special: whether it is a special token, or stands for no text of its own.
        left: the layer at which it left; None if it stayed.
        row: the position of the token in whose row it ended, its own if it stayed; -1: dropped.
        score: its score there, or at the last layer that had one; None without.
    """

    position: int
    token: str
    text: str
    gap: str
    start: int
    end: int
    special: bool
    left: int | None
    row: int
    score: float | None

    @property
    def shown(self) -> str:
        """What stands for the token in running text."""
        return self.token if self.special else self.text


@dataclass(frozen=True)
class Explanation:
    """The fate of every token of a text, or of a pair of texts.

    Attributes:
        model: the model's name.
        policy: a short name of the policy; "off" without one.
        policy_hash: identifies the policy.
        words: the policy in words.
        profile: the profile, if one was chosen.
        layers: number of layers.
        pruning_layers: the layers at which tokens may leave.
        tokens: one entry per token.
        kept: rows after each layer's pruning; a row of merged tokens counts as one.
        merged: whether a layer merges what leaves there into one row.
        grouped: whether tokens merge into the rows of tokens that stay (merge, pool).
        cut: characters at the end of the texts that were beyond the length limit.
        macs: multiply-adds executed.
        macs_dense: the same without pruning.
    """

    model: str
    policy: str
    policy_hash: str
    words: tuple[str, ...]
    profile: str | None
    layers: int
    pruning_layers: tuple[int, ...]
    tokens: tuple[TokenFate, ...]
    kept: tuple[int, ...]
    merged: bool
    grouped: bool
    cut: int
    macs: int
    macs_dense: int

    @property
    def left_at(self) -> dict[int, int]:
        """Layer -> how many tokens left there, for every pruning layer."""
        counts = dict.fromkeys(self.pruning_layers, 0)
        for token in self.tokens:
            if token.left is not None:
                counts[token.left] = counts.get(token.left, 0) + 1
        return counts

    @property
    def stayed(self) -> int:
        """Tokens that were never dropped."""
        return sum(token.left is None for token in self.tokens)

    @property
    def share(self) -> float:
        """Multiply-adds executed as a share of the dense ones."""
        return self.macs / self.macs_dense if self.macs_dense else 1.0

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "model": self.model,
            "policy": self.policy,
            "policy_hash": self.policy_hash,
            "profile": self.profile,
            "layers": self.layers,
            "pruning_layers": list(self.pruning_layers),
            "kept_per_layer": list(self.kept),
            "macs": self.macs,
            "macs_dense": self.macs_dense,
            "characters_cut": self.cut,
            "tokens": [
                {
                    "position": token.position,
                    "token": token.token,
                    "text": token.text,
                    "start": None if token.start < 0 else token.start,
                    "end": None if token.start < 0 else token.end,
                    "special": token.special,
                    "left_at_layer": token.left,
                    "row": None if token.row < 0 else token.row,
                    "score": token.score,
                }
                for token in self.tokens
            ],
        }


def explain_text(
    model: Model, text: str, pair: str | None = None, *, profile: str | None = None
) -> Explanation:
    """Run a text (or a pair) once and note which token left where.

    Raises ValueError for an unknown profile.
    """
    from tokprune_rt.policy import compile_plan
    from tokprune_rt.tokenizer import check_text

    texts = [check_text(part, "text") for part in (text, pair) if part is not None]
    encoding = model.tokenizer.encodings([texts[0] if pair is None else (texts[0], texts[1])])[0]
    tokens = model.tokenizer.tokens(encoding)
    output = model.forward(
        [tokens.ids],
        [tokens.type_ids],
        profile=profile,
        trace=True,
        segment_ids=[tokens.segments],
    )
    assert output.trace is not None
    policy = model.policy
    plan = compile_plan(policy, profile) if policy is not None else None
    steps = plan["steps"] if plan is not None else []
    packing = {step["layer"] for step in steps if step["action"] == "package"}
    left = _left_at([layer[0] for layer in output.trace.kept], len(tokens), packing)
    scores = [None if layer is None else layer[0] for layer in output.trace.scores]
    return Explanation(
        model=model.name,
        policy=policy_label(policy),
        policy_hash=model.policy_hash,
        words=tuple(policy_words(policy, profile)) if policy is not None else (),
        profile=profile,
        layers=model.config.layers,
        pruning_layers=tuple(sorted({step["layer"] for step in steps})),
        tokens=_fates(model, texts, encoding, left, output.trace.rows[-1][0], scores),
        kept=tuple(int(layer[0]) for layer in output.stats.kept_per_sequence),
        merged=bool(packing),
        grouped=any(step["action"] in ("merge", "pool") for step in steps),
        cut=_characters_cut(texts, encoding),
        macs=output.stats.macs,
        macs_dense=output.stats.macs_dense,
    )


def _left_at(
    kept: Sequence[IntArray], count: int, packing_layers: Collection[int]
) -> list[int | None]:
    """The layer at which each token left.

    A layer that packs appends one row, under the lowest position of the tokens in it; that token
    must not count as having stayed.
    """
    left: list[int | None] = [None] * count
    alive = set(range(count))
    before = list(range(count))
    for layer, positions in enumerate(kept):
        rows = [int(position) for position in positions]
        packed = layer in packing_layers and rows != before
        stayed = alive & set(rows[:-1] if packed else rows)
        for position in alive - stayed:
            left[position] = layer
        alive, before = stayed, rows
    return left


def _score_of(position: int, left: int | None, scores: Sequence[Any]) -> float | None:
    last = len(scores) - 1 if left is None else left
    for layer in range(last, -1, -1):
        found = scores[layer]
        if found is not None and not np.isnan(found[position]):
            return float(found[position])
        if left is not None:
            break
    return None


def _fates(
    model: Model,
    texts: Sequence[str],
    encoding: Encoding,
    left: Sequence[int | None],
    rows: IntArray,
    scores: Sequence[Any],
) -> tuple[TokenFate, ...]:
    fates = []
    ends = [0] * len(texts)
    for position, (index, owner, (start, end)) in enumerate(
        zip(encoding.ids, encoding.sequence_ids, encoding.offsets, strict=True)
    ):
        text = gap = ""
        if owner is not None and start >= ends[owner] and end > start:
            gap, text = texts[owner][ends[owner] : start], texts[owner][start:end]
            # Some tokenizers count the space before a word as part of it.
            bare = text.lstrip()
            if bare:
                gap, text = gap + text[: len(text) - len(bare)], bare
            ends[owner] = end
        fates.append(
            TokenFate(
                position=position,
                token=model.tokenizer.token(index),
                text=text,
                gap=gap,
                start=start if text else -1,
                end=end if text else -1,
                # Also the second token of one character, as byte-level vocabularies have them.
                special=not text,
                left=left[position],
                row=int(rows[position]),
                score=_score_of(position, left[position], scores),
            )
        )
    return tuple(fates)


def _characters_cut(texts: Sequence[str], encoding: Encoding) -> int:
    ends = [0] * len(texts)
    for owner, (_, end) in zip(encoding.sequence_ids, encoding.offsets, strict=True):
        if owner is not None:
            ends[owner] = max(ends[owner], end)
    return sum(len(text[end:].strip()) for text, end in zip(texts, ends, strict=True))
