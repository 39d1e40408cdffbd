"""The playground: what a model says of a text, which tokens left where, and what that saves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from tokprune_rt.outputs import FloatArray
from tokprune_rt.policy import OFF
from tokprune_rt.serve import registry as need
from tokprune_rt.serve.errors import empty, invalid
from tokprune_rt.serve.jobs import Job, Profile, Want, Work
from tokprune_rt.serve.routing import Route, Server
from tokprune_rt.serve.schemas import Play
from tokprune_rt.serve.served import Call, Served, profile_name
from tokprune_rt.serve.tasks import count_texts
from tokprune_rt.tasks.answer import best_answers, context_windows
from tokprune_rt.tasks.classify import label_scores, ranked_labels
from tokprune_rt.tasks.tag import entities_of
from tokprune_rt.tokenizer import TextOrPair, Tokens

# Calls per profile, in turns; the fastest counts.
_TIMES = 5

# The page loads nothing and sends to its own server only.
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


async def page(server: Server, body: None, call: Call) -> Any:
    """The page itself."""
    text = files("tokprune_rt.serve").joinpath("playground.html").read_text(encoding="utf-8")
    return Response(text, media_type="text/html", headers=_HEADERS)


class _Input:
    """What a model reads of the page's text and documents."""

    def __init__(self, served: Served, text: str, documents: Sequence[str]) -> None:
        model = served.model
        self.model, self.text, self.documents = model, text, list(documents)
        self.windows: list[Any] = []
        self.texts: list[TextOrPair]
        if need.answers(model):
            if len(self.documents) != 1:
                raise invalid("a question needs one document, its context", "documents")
            self.texts = [(text, self.documents[0])]
        elif need.tags(model):
            self.texts = [text]
        elif need.classifies(model):
            self.texts = [(text, document) for document in self.documents] or [text]
        else:
            self.texts = [text, *self.documents]

    @property
    def want(self) -> Want:
        """What the encoder is asked for."""
        if self.model.config.head != "none":
            return "logits"
        return "pooled" if self.model.dimension is not None else "hidden"

    def sequences(self) -> list[Tokens]:
        """The token arrays; a question with the first stretch of its context."""
        tokenizer = self.model.tokenizer
        if not need.answers(self.model):
            self.encodings = tokenizer.encodings(self.texts)
            return [tokenizer.tokens(encoding) for encoding in self.encodings]
        cut, _ = context_windows(
            self.model,
            self.text,
            self.documents[0],
            top_k=1,
            max_answer_len=15,
            max_seq_len=None,
            doc_stride=None,
        )
        self.windows = list(islice(cut, 1))
        return [window.tokens for window in self.windows]

    def result(self, rows: Sequence[FloatArray]) -> dict[str, Any]:
        """What the encoder's rows mean."""
        model = self.model
        if need.answers(model):
            return {
                "kind": "answer",
                "answer": best_answers(self.windows, rows, self.documents[0])[0],
            }
        if need.tags(model):
            (encoding,) = self.encodings
            found = entities_of(model, self.text, encoding, rows[0], "simple", ("O",))
            return {"kind": "entities", "entities": found}
        if need.classifies(model):
            scores = label_scores(model, np.stack(rows))
            ranked = [ranked_labels(model.labels, row, None) for row in scores]
            return {"kind": "labels", "labels": ranked}
        if self.want == "hidden":
            return {"kind": "states"}
        vectors = np.stack(rows)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return {
            "kind": "embedding",
            "vector": vectors[0],
            "similarities": [float(row @ unit[0]) for row in unit[1:]],
        }


async def play(server: Server, body: Play, call: Call) -> Any:
    """A text under a profile and dense: results, times, and the layer at which each token left."""
    served = server.registry.pick(body.model)
    chosen = served.requested(body.profile) or served.adaptive.current
    if not body.text.strip():
        raise empty("text")
    given = _Input(served, body.text, body.documents)
    count_texts(call, served, given.texts, "documents")
    sequences = await served.tokenized(call, given.sequences)
    if not sequences:
        raise empty("documents")
    traced = await served.run(call, sequences, Work(given.want, trace=True, alone=True), chosen)
    pruned, dense = await _measured(served, call, sequences, given, (chosen, Profile(OFF)))
    layers = served.model.config.layers
    return {
        "model": served.name,
        "task": served.model.task,
        "layers": layers,
        "tokens": traced.tokens,
        "kept": sum(traced.kept),
        "kept_per_layer": [
            sum(int(_own(rows)[layer].sum()) for rows in traced.traces) for layer in range(layers)
        ],
        "items": [
            _fates(served, tokens, rows)
            for tokens, rows in zip(sequences, traced.traces, strict=True)
        ],
        "pruned": pruned,
        "dense": dense,
    }


async def _measured(
    served: Served,
    call: Call,
    sequences: Sequence[Tokens],
    given: _Input,
    profiles: Sequence[Profile],
) -> list[dict[str, Any]]:
    """What each profile gives and takes: milliseconds of the fastest call, alone in the encoder."""
    work = Work(given.want, alone=True)
    rounds = [
        [await served.run(call, sequences, work, profile, admitted=True) for profile in profiles]
        for _ in range(_TIMES)
    ]
    return [
        {
            "profile": profile_name(profile),
            "ms": 1000 * min(job.inference_seconds for job in jobs),
            "macs": jobs[0].macs,
            "result": await served.off_loop(partial(_result, given, jobs[0])),
        }
        for profile, jobs in zip(profiles, zip(*rounds, strict=True), strict=True)
    ]


def _result(given: _Input, job: Job) -> dict[str, Any]:
    return given.result([row for row in job.rows if row is not None])


def _own(rows: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Whether a token has a row of its own place, [layers, tokens]; ``rows``: `Trace.rows`."""
    own: NDArray[np.bool_] = rows == np.arange(rows.shape[1])
    return own


def _fates(served: Served, tokens: Tokens, rows: NDArray[np.int32]) -> list[dict[str, Any]]:
    """Every token with the layer at which it left, None if it stayed, and the token in whose row
    it ended, None if that is its own or it was dropped."""
    gone = ~_own(rows)
    left = np.where(gone.any(axis=0), gone.argmax(axis=0), -1)
    tokenizer = served.model.tokenizer
    names = [tokenizer.token(int(index)) for index in tokens.ids]
    return [
        {
            "text": names[position],
            "special": int(index) in tokenizer.special_ids,
            "left": None if left[position] < 0 else int(left[position]),
            "into": names[row] if row not in (-1, position) else None,
        }
        for position, (index, row) in enumerate(zip(tokens.ids, rows[-1].tolist(), strict=True))
    ]


ROUTES = [
    Route("GET", "/", page, "The playground", public=True),
    Route("POST", "/playground", play, "A text under a profile and dense", Play),
]
