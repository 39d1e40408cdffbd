"""Text -> token ids, with the Hugging Face ``tokenizers`` library."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.errors import ModelFormatError
from tokprune_rt.loader.tokenizer_files import build_tokenizer, read_tokenizer_config

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

Ids = NDArray[np.int32]
TextOrPair = str | tuple[str, str]

_CHUNK = 1024
# From this many characters on, a single text is tokenized as a batch: see `Tokenizer._encode`.
_LONG = 2000
_SURROGATES = re.compile("[\ud800-\udfff]")
# Their Hugging Face classes hand no token types to the model, whatever the post-processor says.
_UNTYPED = re.compile(r"^(Roberta|XLMRoberta|Camembert|DistilBert|MPNet)Tokenizer(Fast)?$")


@dataclass(frozen=True, slots=True)
class Tokens:
    """One tokenised text or pair; arrays of int32 [n].

    ``segments`` numbers the texts of a pair, special tokens counted with the text before them.
    """

    ids: Ids
    type_ids: Ids
    segments: Ids

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Window:
    """A question with one stretch of its context.

    ``offsets`` [n, 2] are character positions, ``words`` [n] word numbers (-1: none) and
    ``in_context`` [n] tells the tokens of the context.
    """

    tokens: Tokens
    offsets: NDArray[np.int64]
    words: NDArray[np.int64]
    in_context: NDArray[np.bool_]


class InputTooLongError(ValueError):
    """A text beyond the length limit that was not to be cut."""


def check_text(value: object, where: str) -> str:
    """``value`` as text that the tokenizer takes; TypeError naming ``where`` for anything else.

    Lone surrogates, which are no valid Unicode text, become U+FFFD; positions do not move.
    """
    if not isinstance(value, str):
        raise TypeError(f"{where} must be a str, got {type(value).__name__}")
    return _SURROGATES.sub("\ufffd", value)


class Tokenizer:
    """A folder's tokenizer with this model's length limit. Safe to call from several threads."""

    def __init__(
        self,
        folder: Path,
        model_type: str,
        *,
        max_positions: int,
        max_length: int | None = None,
        do_lower_case: bool = False,
    ) -> None:
        options = read_tokenizer_config(folder)
        self._variants_lock = threading.Lock()
        self._variants: dict[str | None, Backend] = {}
        self._backend = build_tokenizer(folder, model_type, options)
        self._backend.no_padding()
        if do_lower_case:
            self._add_lowercase()
        self._options = options
        self._max_positions = max_positions
        names = options.get("model_input_names")
        if isinstance(names, list):
            self.typed = "token_type_ids" in names
        else:
            self.typed = not _UNTYPED.match(str(options.get("tokenizer_class", "")))
        self._direction = "left" if options.get("truncation_side") == "left" else "right"
        self._folder = folder
        self.max_length = _limit(options, max_length, max_positions)
        try:
            self._truncate(self._backend, self.max_length)
        except ValueError as err:
            raise ModelFormatError(f"{folder}: {err}") from None

    def _truncate(self, backend: Backend, length: int) -> None:
        if length <= backend.num_special_tokens_to_add(True):
            raise ValueError(
                f"the length limit of {length} tokens leaves no room for text beside the special "
                "tokens"
            )
        backend.enable_truncation(length, direction=self._direction)

    def set_max_length(self, length: int | None) -> None:
        """Cut texts to ``length`` tokens from now on; None for what the model can take.

        Raises TypeError for no integer, ValueError for what the model cannot take.
        """
        if length is None:
            length = self._max_positions
        if isinstance(length, bool) or not isinstance(length, int | np.integer):
            raise TypeError(f"max_seq_length must be an int or None, got {type(length).__name__}")
        if length > self._max_positions:
            raise ValueError(
                f"max_seq_length is {length}, the model takes at most {self._max_positions} tokens"
            )
        # Truncation is state of a backend; calls that are under way keep the one they have.
        clone = type(self._backend).from_str(self._backend.to_str())
        self._truncate(clone, int(length))
        with self._variants_lock:
            self._variants = {}
            self._backend, self.max_length = clone, int(length)

    def _add_lowercase(self) -> None:
        from tokenizers import normalizers

        own = self._backend.normalizer
        if getattr(own, "lowercase", False):
            return
        parts = [normalizers.Lowercase()] + ([own] if own is not None else [])
        self._backend.normalizer = normalizers.Sequence(parts)

    def __repr__(self) -> str:
        return f"Tokenizer({str(self._folder)!r}, max_length={self.max_length})"

    def _variant(self, direction: str | None) -> Backend:
        """A backend that cuts on this side, or not at all."""
        if direction == self._direction:
            return self._backend
        # Truncation is state of a backend, so changing it per call would not be safe between
        # threads.
        with self._variants_lock:
            if direction not in self._variants:
                clone = type(self._backend).from_str(self._backend.to_str())
                clone.no_truncation()
                if direction is not None:
                    clone.enable_truncation(self.max_length, direction=direction)
                self._variants[direction] = clone
            return self._variants[direction]

    def _untruncated(self) -> Backend:
        return self._variant(None)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(index for index, token in added.items() if token.special)

    @cached_property
    def pad_id(self) -> int:
        """Id that fills up rectangular batches, for software that wants those."""
        stated = self._options.get("pad_token")
        content = stated.get("content") if isinstance(stated, dict) else stated
        for candidate in (content, "[PAD]", "<pad>"):
            index = self._backend.token_to_id(candidate) if isinstance(candidate, str) else None
            if index is not None:
                return index
        return 0

    @cached_property
    def unknown_id(self) -> int | None:
        """Id of the unknown token, if the vocabulary has one."""
        token = getattr(self._backend.model, "unk_token", None)
        for candidate in (token, "[UNK]", "<unk>"):
            index = self._backend.token_to_id(candidate) if candidate else None
            if index is not None:
                return index
        return None

    def token(self, index: int) -> str:
        """The vocabulary's text of an id."""
        return self._backend.id_to_token(index) or ""

    def join(self, tokens: Sequence[str]) -> str:
        """Tokens back to running text."""
        decoder = self._backend.decoder
        return decoder.decode(list(tokens)) if decoder is not None else " ".join(tokens)

    def prompt_length(self, prompt: str) -> int:
        """Tokens that a prompt takes at the start of a text, leading special token included."""
        ids = self._untruncated().encode(prompt).ids
        return len(ids) - (1 if ids and ids[-1] in self.special_ids else 0)

    def encodings(
        self,
        texts: Sequence[TextOrPair],
        *,
        truncate: bool = True,
        direction: Literal["left", "right"] | None = None,
        offsets: bool = True,
        first: int = 0,
    ) -> list[Encoding]:
        """Tokenise, special tokens included.

        Over-long texts are cut to ``max_length`` on the side ``direction`` (default: the folder's),
        or refused with ValueError when ``truncate`` is False; the message counts the texts from
        ``first``.
        """
        backend = self._variant(direction or self._direction) if truncate else self._untruncated()
        encodings = self._encode(backend, list(texts), offsets)
        if not truncate:
            for index, encoding in enumerate(encodings, first):
                if len(encoding.ids) > self.max_length:
                    raise InputTooLongError(
                        f"text {index} has {len(encoding.ids)} tokens, the limit is "
                        f"{self.max_length}; shorten it or allow truncation (truncate=True)"
                    )
        return encodings

    @staticmethod
    def _encode(backend: Backend, inputs: list[TextOrPair], offsets: bool) -> list[Encoding]:
        if len(inputs) == 1:
            # A batch would wake the tokenizer's own threads, which take cores from the engine's;
            # but a batch lets other threads run Python meanwhile, which a single text does not.
            (only,) = inputs
            parts = (only,) if isinstance(only, str) else only
            if sum(map(len, parts)) < _LONG:
                return [backend.encode(*parts)]
        run = backend.encode_batch if offsets else backend.encode_batch_fast
        return run(inputs)

    def tokens(self, encoding: Encoding) -> Tokens:
        """The arrays of an encoding."""
        ids = np.array(encoding.ids, dtype=np.int32)
        zeros = np.zeros(len(ids), dtype=np.int32)
        if encoding.n_sequences == 1 and not self.typed:
            return Tokens(ids, zeros, zeros)
        given = np.array(encoding.type_ids, dtype=np.int32)
        types = given if self.typed else zeros
        if encoding.n_sequences == 1:
            return Tokens(ids, types, zeros)
        if given.any():
            return Tokens(ids, types, given)
        # A RoBERTa-like post-processor does not tell the texts of a pair apart by type.
        owners = np.array([owner or 0 for owner in encoding.sequence_ids], dtype=np.int32)
        return Tokens(ids, types, np.maximum.accumulate(owners))

    def tokenize(
        self,
        texts: Sequence[TextOrPair],
        *,
        truncate: bool = True,
        direction: Literal["left", "right"] | None = None,
    ) -> list[Tokens]:
        """Tokenise to arrays, in chunks that bound the memory; see `encodings`."""
        found: list[Tokens] = []
        for first in range(0, len(texts), _CHUNK):
            part = texts[first : first + _CHUNK]
            encodings = self.encodings(
                part, truncate=truncate, direction=direction, offsets=False, first=first
            )
            found += [self.tokens(encoding) for encoding in encodings]
        return found

    def raw_encodings(self, texts: Sequence[str], *, special_tokens: bool) -> list[Encoding]:
        """Tokenise whole texts of any length, with or without the special tokens."""
        return self._untruncated().encode_batch(list(texts), add_special_tokens=special_tokens)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Token ids back to text; ids outside the vocabulary leave nothing."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def windows(
        self,
        question: str,
        context: str,
        *,
        max_length: int | None = None,
        stride: int = 128,
        most: int | None = None,
    ) -> Iterator[Window]:
        """Cut a context into overlapping windows, each with the whole question, as they are read.

        Neighbouring windows share ``stride`` tokens of context, at most three quarters of those
        that fit beside the question. Raises at once: InputTooLongError when all windows together
        have more than ``most`` tokens, ValueError when the question leaves no room for the context.
        """
        limit = min(max_length or self.max_length, self.max_length)
        (encoding,) = self._encode(self._untruncated(), [(question, context)], True)
        tokens = self.tokens(encoding)
        owners = np.array([-1 if owner is None else owner for owner in encoding.sequence_ids])
        place = np.flatnonzero(owners == 1)
        if len(place) == 0:
            return iter(())
        first, last = int(place[0]), int(place[-1]) + 1
        around = len(tokens) - (last - first)
        room = limit - around
        if room < 1:
            raise ValueError(
                f"the question takes {around} of {limit} tokens and leaves no room for the context"
            )
        # Or a long question, which leaves little more than the stride, would make a window of
        # almost every token.
        shared = min(stride, room * 3 // 4)
        starts = range(first, max(first + 1, last - shared), room - shared)
        total = last - first + len(starts) * around + (len(starts) - 1) * shared
        if most is not None and total > most:
            raise InputTooLongError(
                f"the question and its context have {total} tokens in {len(starts)} windows, the "
                f"limit is {most}"
            )
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        words = np.array([-1 if word is None else word for word in encoding.word_ids])

        def cut(start: int) -> Window:
            keep = np.r_[0:first, start : min(start + room, last), last : len(tokens)]
            part = Tokens(tokens.ids[keep], tokens.type_ids[keep], tokens.segments[keep])
            return Window(part, offsets[keep], words[keep], owners[keep] == 1)

        return map(cut, starts)


def _limit(options: dict[str, Any], stated: int | None, max_positions: int) -> int:
    limit = stated
    if limit is None:
        value = options.get("model_max_length")
        # "No limit" is written as a huge number.
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9:
            limit = int(value)
    return max_positions if limit is None else min(limit, max_positions)
