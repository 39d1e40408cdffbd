"""What the routes do with texts: tokenize, encode, and say what the numbers mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tokprune_rt.outputs import FloatArray
from tokprune_rt.policy import OFF
from tokprune_rt.serve.errors import empty, invalid, too_large
from tokprune_rt.serve.jobs import Job, Profile, Work
from tokprune_rt.serve.served import Call, Served
from tokprune_rt.tasks.answer import best_answers, context_windows
from tokprune_rt.tasks.classify import label_scores, ranked_labels
from tokprune_rt.tasks.numeric import sigmoid
from tokprune_rt.tasks.rank import best, cascade
from tokprune_rt.tasks.tag import check_strategy, entities_of
from tokprune_rt.tokenizer import TextOrPair, Window, check_text

# Hidden states are answered as text, a hundred times the size of what was asked.
_MOST_STATES = 8192

Direction = Literal["left", "right"] | None


def count_texts(call: Call, served: Served, texts: Sequence[TextOrPair], what: str) -> None:
    """Count what came in; ServeError 400 for nothing, 413 for too many texts."""
    if not texts:
        raise empty(what)
    limit = served.settings.max_items
    if len(texts) > limit:
        raise too_large(f"{what} has {len(texts)} texts, the limit is {limit}", what)
    call.characters += sum(
        len(text) if isinstance(text, str) else sum(map(len, text)) for text in texts
    )


async def encode(
    served: Served,
    call: Call,
    texts: Sequence[str],
    work: Work,
    profile: Profile | None,
    *,
    what: str = "inputs",
    prompt_name: str | None = None,
    truncate: bool | None = None,
    direction: Direction = None,
    most: int | None = None,
) -> Job:
    """Run texts behind a prompt; the finished job. ``most`` bounds the tokens."""
    count_texts(call, served, texts, what)
    tokenizer = served.model.tokenizer

    def prepare() -> tuple[Any, int]:
        prefix, skip = served.model.prompt_prefix(prompt_name)
        items = [prefix + check_text(text, what) for text in texts]
        sequences = tokenizer.tokenize(items, truncate=truncate is not False, direction=direction)
        return sequences, skip

    sequences, skip = await served.tokenized(call, prepare)
    tokens = sum(map(len, sequences))
    if most is not None and tokens > most:
        raise too_large(f"{what} has {tokens} tokens, the limit of this route is {most}", what)
    return await served.run(call, sequences, work, profile, skip)


def stacked(job: Job) -> FloatArray:
    """The rows of a job as one array [n, width]."""
    return np.stack([row for row in job.rows if row is not None])


async def embeddings(
    served: Served,
    call: Call,
    texts: Sequence[str],
    profile: Profile | None,
    *,
    normalize: bool = True,
    dimensions: int | None = None,
    **options: Any,
) -> FloatArray:
    """Sentence embeddings float32 [n, d]; options as `encode`."""
    width = served.model.dimension or 0
    if dimensions is not None and not 1 <= dimensions <= width:
        raise invalid(f"dimensions is {dimensions}, allowed are 1 to {width}", "dimensions")
    scaled = normalize or served.model.setup.normalize
    job = await encode(served, call, texts, Work("pooled", normalize=scaled), profile, **options)
    vectors = stacked(job)
    if dimensions is None or dimensions == width:
        return vectors
    cut = np.ascontiguousarray(vectors[:, :dimensions])
    if scaled:
        cut /= np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), np.float32(1e-12))
    return cut


async def token_states(
    served: Served, call: Call, texts: Sequence[str], profile: Profile | None, **options: Any
) -> list[FloatArray]:
    """Hidden states [tokens, hidden] of every text, for every token; options as `encode`.

    Runs dense unless a profile is named. ServeError: 422 when that drops tokens, 413 for more
    states than an answer should hold.
    """
    job = await encode(
        served, call, texts, Work("hidden"), profile or Profile(OFF), most=_MOST_STATES, **options
    )
    rows = [row for row in job.rows if row is not None]
    for index, (row, tokens) in enumerate(zip(rows, job.sequences, strict=True)):
        if len(row) != len(tokens):
            raise invalid(
                f"profile {call.profile!r} leaves {len(row)} of {len(tokens)} tokens of text "
                f"{index}, and this route needs a state for each; use {OFF!r}",
                "profile",
            )
    return rows


async def _logits(
    served: Served,
    call: Call,
    texts: Sequence[TextOrPair],
    profile: Profile | None,
    *,
    what: str = "inputs",
    truncate: bool | None = None,
    direction: Direction = None,
) -> Job:
    """Run texts or pairs; the finished job, whose rows are logits [labels]."""
    count_texts(call, served, texts, what)

    def prepare() -> Any:
        return served.model.tokenizer.tokenize(
            texts, truncate=truncate is not False, direction=direction
        )

    sequences = await served.tokenized(call, prepare)
    return await served.run(call, sequences, Work("logits"), profile)


async def labels(
    served: Served,
    call: Call,
    texts: Sequence[TextOrPair],
    profile: Profile | None,
    *,
    raw_scores: bool = False,
    top_k: int | None = None,
    **options: Any,
) -> list[list[dict[str, Any]]]:
    """``{"label", "score"}`` of every text or pair, best first; options as `_logits`."""
    values = stacked(await _logits(served, call, texts, profile, **options))
    scores = values if raw_scores else label_scores(served.model, values)
    return [ranked_labels(served.model.labels, row, top_k) for row in scores]


async def relevance(
    served: Served,
    call: Call,
    query: str,
    texts: Sequence[str],
    profile: Profile | None,
    *,
    raw_scores: bool = False,
    rescore: int | None = None,
    **options: Any,
) -> list[tuple[int, float]]:
    """(index, score) of every document, best first: sigmoids as text-embeddings-inference's.

    ``rescore`` and the order are those of `Model.rank`; other options as `_logits`.
    """
    pairs: list[TextOrPair] = [(query, text) for text in texts]
    job = await _logits(served, call, pairs, profile, **options)

    def scores_of(job: Job) -> FloatArray:
        values = stacked(job)[:, 0]
        return values if raw_scores else sigmoid(values)

    scores = exact = scores_of(job)
    if job.profile == Profile(OFF):
        rescore = None
    if rescore is not None:
        head = [job.sequences[place] for place in best(scores, rescore)]
        named = call.profile
        exact = scores_of(await served.run(call, head, job.work, Profile(OFF), admitted=True))
        call.profile = named
    order, scores = cascade(scores, rescore, lambda places: exact)
    return [(int(place), float(scores[place])) for place in order]


async def entities(
    served: Served,
    call: Call,
    texts: Sequence[str],
    profile: Profile | None,
    *,
    strategy: str,
    ignore_labels: Sequence[str],
    truncate: bool | None = None,
    direction: Direction = None,
) -> list[list[dict[str, Any]]]:
    """Labelled tokens or groups of every text, as `Model.tag`."""
    count_texts(call, served, texts, "inputs")
    tokenizer = served.model.tokenizer

    def prepare() -> tuple[Any, Any]:
        check_strategy(strategy)
        found = tokenizer.encodings(texts, truncate=truncate is not False, direction=direction)
        return found, [tokenizer.tokens(encoding) for encoding in found]

    encodings, sequences = await served.tokenized(call, prepare)
    job = await served.run(call, sequences, Work("logits"), profile)

    def finish() -> list[list[dict[str, Any]]]:
        return [
            entities_of(served.model, text, encoding, row, strategy, ignore_labels)
            for text, encoding, row in zip(texts, encodings, job.rows, strict=True)
            if row is not None
        ]

    return await served.off_loop(finish)


async def answer(
    served: Served,
    call: Call,
    question: str,
    context: str,
    profile: Profile | None,
    *,
    top_k: int = 1,
    max_answer_len: int = 15,
    max_seq_len: int | None = None,
    doc_stride: int | None = None,
    handle_impossible_answer: bool = False,
) -> Any:
    """The answer, or with ``top_k`` > 1 the answers, to a question, as `Model.answer`."""
    call.characters += len(question) + len(context)

    def prepare() -> tuple[list[Window], str]:
        cut, text = context_windows(
            served.model,
            question,
            context,
            top_k=top_k,
            max_answer_len=max_answer_len,
            max_seq_len=max_seq_len,
            doc_stride=doc_stride,
            most=served.settings.max_tokens,
        )
        return list(cut), text

    windows, text = await served.tokenized(call, prepare)
    job = await served.run(call, [w.tokens for w in windows], Work("logits"), profile)
    rows = [row for row in job.rows if row is not None]
    best = await served.off_loop(
        lambda: best_answers(windows, rows, text, top_k, max_answer_len, handle_impossible_answer),
        call.characters,
    )
    return best if top_k > 1 else best[0]
