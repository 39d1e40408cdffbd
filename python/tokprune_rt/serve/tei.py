"""The routes of text-embeddings-inference, and ours in its manner."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

import tokprune_rt
from tokprune_rt.serve import registry as need
from tokprune_rt.serve import schemas, tasks
from tokprune_rt.serve.errors import empty, invalid
from tokprune_rt.serve.routing import Route, Server, validation
from tokprune_rt.serve.served import Call, Served
from tokprune_rt.tokenizer import TextOrPair


def _listed(inputs: str | list[str]) -> list[str]:
    if not inputs:
        raise empty("inputs")
    return [inputs] if isinstance(inputs, str) else inputs


async def embed(server: Server, body: schemas.Embed, call: Call) -> Any:
    """Sentence embeddings: a list of vectors, also for a single text."""
    served = server.registry.pick(body.model, need.embeds)
    return await tasks.embeddings(
        served,
        call,
        _listed(body.inputs),
        served.requested(body.profile),
        normalize=body.normalize,
        dimensions=body.dimensions,
        prompt_name=body.prompt_name,
        truncate=body.truncate,
        direction=body.truncation_direction,
    )


async def embed_all(server: Server, body: schemas.EmbedAll, call: Call) -> Any:
    """Hidden states of every token."""
    served = server.registry.pick(body.model)
    return await tasks.token_states(
        served,
        call,
        _listed(body.inputs),
        served.requested(body.profile),
        prompt_name=body.prompt_name,
        truncate=body.truncate,
        direction=body.truncation_direction,
    )


def _predict_inputs(inputs: str | list[str] | list[list[str]]) -> tuple[list[TextOrPair], bool]:
    """Texts and pairs, and whether a single one was given: ["a", "b"] is a pair."""
    if not inputs:
        raise empty("inputs")
    if isinstance(inputs, str):
        return [inputs], True
    rows = [[item] if isinstance(item, str) else item for item in inputs]
    single = isinstance(inputs[0], str)
    if single:
        rows = [[text for row in rows for text in row]]
    found: list[TextOrPair] = []
    for row in rows:
        if len(row) not in (1, 2):
            raise invalid(f"a text or a pair of texts is expected, found {len(row)}", "inputs")
        found.append(row[0] if len(row) == 1 else (row[0], row[1]))
    return found, single


async def predict(server: Server, body: schemas.Predict, call: Call) -> Any:
    """Labels with scores, best first."""
    served = server.registry.pick(body.model, need.classifies)
    items, single = _predict_inputs(body.inputs)
    found = await tasks.labels(
        served,
        call,
        items,
        served.requested(body.profile),
        raw_scores=body.raw_scores,
        truncate=body.truncate,
        direction=body.truncation_direction,
    )
    return found[0] if single else found


async def rerank(server: Server, body: schemas.Rerank, call: Call) -> Any:
    """Documents by relevance, in the form of the body's own dialect."""
    served = server.registry.pick(body.model, need.reranks)
    if (body.texts is None) == (body.documents is None):
        raise invalid("give either texts or documents", "texts")
    if not body.query:
        raise empty("query")
    cohere = body.documents is not None
    given = body.texts if body.documents is None else body.documents
    texts = [item if isinstance(item, str) else item.text for item in given or []]
    ranked = await tasks.relevance(
        served,
        call,
        body.query,
        texts,
        served.requested(body.profile),
        raw_scores=body.raw_scores,
        rescore=body.rescore,
        what="documents" if cohere else "texts",
        truncate=body.truncate,
        direction=body.truncation_direction,
    )
    if cohere:
        results = [
            {"index": index, "relevance_score": score}
            | ({"document": {"text": texts[index]}} if body.return_documents else {})
            for index, score in ranked[: body.top_n]
        ]
        return {"model": served.name, "results": results, "usage": {"total_tokens": call.tokens}}
    return [
        {"index": index, "score": score} | ({"text": texts[index]} if body.return_text else {})
        for index, score in ranked[: body.top_n]
    ]


async def similarity(server: Server, body: schemas.Similarity, call: Call) -> Any:
    """Cosine of a text with each of several."""
    served = server.registry.pick(body.model, need.embeds)
    options = body.parameters or schemas.SimilarityParameters()
    if not body.inputs.sentences:
        raise empty("sentences")
    vectors = await tasks.embeddings(
        served,
        call,
        [body.inputs.source_sentence, *body.inputs.sentences],
        served.requested(body.profile),
        prompt_name=options.prompt_name,
        truncate=options.truncate,
        direction=options.truncation_direction,
    )
    return [float(row @ vectors[0]) for row in vectors[1:]]


async def tokenize(server: Server, body: schemas.Tokenize, call: Call) -> Any:
    """Tokens of every text with their characters."""
    served = server.registry.pick(body.model)
    texts = _listed(body.inputs)
    tasks.count_texts(call, served, texts, "inputs")

    def run() -> list[list[dict[str, Any]]]:
        prefix, _ = served.model.prompt_prefix(body.prompt_name)
        found = served.model.tokenizer.raw_encodings(
            [prefix + text for text in texts], special_tokens=body.add_special_tokens
        )
        return [
            [
                {
                    "id": index,
                    "text": token,
                    "special": bool(special),
                    "start": None if special else start,
                    "stop": None if special else stop,
                }
                for index, token, special, (start, stop) in zip(
                    encoding.ids,
                    encoding.tokens,
                    encoding.special_tokens_mask,
                    encoding.offsets,
                    strict=True,
                )
            ]
            for encoding in found
        ]

    return await served.tokenized(call, run)


async def decode(server: Server, body: schemas.Decode, call: Call) -> Any:
    """Texts of token ids."""
    served = server.registry.pick(body.model)
    if not body.ids:
        raise empty("ids")
    rows = [[item] if isinstance(item, int) else item for item in body.ids]
    if isinstance(body.ids[0], int):
        rows = [[token for row in rows for token in row]]
    limit = served.model.config.vocab_size
    for row in rows:
        for token in row:
            if not 0 <= token < limit:
                raise invalid(f"ids has {token}, allowed are 0 to {limit - 1}", "ids")
    decoder = served.model.tokenizer

    def run() -> list[str]:
        return [decoder.decode(row, skip_special_tokens=body.skip_special_tokens) for row in rows]

    return await served.off_loop(run)


async def tag(server: Server, body: schemas.Tag, call: Call) -> Any:
    """Entities of a text, or a list of them for a list."""
    served = server.registry.pick(body.model, need.tags)
    found = await tasks.entities(
        served,
        call,
        _listed(body.inputs),
        served.requested(body.profile),
        strategy=body.aggregation_strategy,
        ignore_labels=body.ignore_labels,
        truncate=body.truncate,
        direction=body.truncation_direction,
    )
    return found[0] if isinstance(body.inputs, str) else found


async def answer(server: Server, body: schemas.Answer, call: Call) -> Any:
    """The answer to a question in a context of any length."""
    served = server.registry.pick(body.model, need.answers)
    options = body.model_dump(exclude={"model", "profile", "question", "context"})
    return await tasks.answer(
        served, call, body.question, body.context, served.requested(body.profile), **options
    )


async def root(server: Server, body: schemas.Root, call: Call) -> Any:
    """The route of the model's task; a Hugging Face pipeline's body gets a pipeline's answer."""
    model = server.registry.pick(body.model).model
    fields = body.model_dump(exclude_unset=True)
    inputs = fields.get("inputs")
    pipeline = fields.pop("parameters", None)
    if isinstance(inputs, dict) and "source_sentence" in inputs:
        return await similarity(server, _as(schemas.Similarity, fields), call)
    if need.answers(model):
        asked = fields.pop("inputs", None)
        asked = asked if isinstance(asked, dict) else {}
        return await answer(server, _as(schemas.Answer, fields | asked | (pipeline or {})), call)
    if need.tags(model):
        return await tag(server, _as(schemas.Tag, fields | (pipeline or {})), call)
    if "query" in fields:
        return await rerank(server, _as(schemas.Rerank, fields), call)
    if need.classifies(model):
        return await _classified(server, fields, pipeline, call)
    return await embed(server, _as(schemas.Embed, fields | (pipeline or {})), call)


async def _classified(
    server: Server, fields: dict[str, Any], pipeline: dict[str, Any] | None, call: Call
) -> Any:
    if pipeline is None:
        return await predict(server, _as(schemas.Predict, fields), call)
    apply = pipeline.pop("function_to_apply", None)
    top_k = _as(schemas.LabelParameters, {"top_k": pipeline.pop("top_k", None)}).top_k
    if apply not in (None, "none"):
        raise invalid(
            f"function_to_apply {apply!r} is not supported; leave it out or use 'none'",
            "parameters",
        )
    body = _as(schemas.Predict, fields | pipeline | {"raw_scores": apply == "none"})
    found = await predict(server, body, call)
    rows = [found] if isinstance(found[0], dict) else found
    return [row[:top_k] for row in rows]


def _as(kind: type[BaseModel], fields: dict[str, Any]) -> Any:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise validation(error) from error


def _model_type(served: Served) -> dict[str, Any]:
    model = served.model
    labels = {
        "id2label": {str(i): label for i, label in enumerate(model.labels)},
        "label2id": {label: i for i, label in enumerate(model.labels)},
    }
    if need.reranks(model):
        return {"reranker": labels}
    if model.task == "sequence-classification":
        return {"classifier": labels}
    if model.labels:
        return {model.task.replace("-", "_"): labels}
    return {"embedding": {"pooling": "+".join(model.setup.pooling) or "none"}}


def describe(served: Served) -> dict[str, Any]:
    """A model as ``/info`` has it."""
    model, settings = served.model, served.settings
    return {
        "model_id": served.name,
        "model_sha": None,
        "model_dtype": model.precision,
        "model_type": _model_type(served),
        "max_concurrent_requests": settings.max_concurrent_requests,
        "max_input_length": model.max_seq_length,
        "max_batch_tokens": settings.max_batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": settings.max_items,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": tokprune_rt.__version__,
        "sha": None,
        "docker_label": None,
        "task": model.task,
        "dimension": model.dimension,
        "isa": model.isa,
        "threads": model.threads,
        "policy_hash": served.policy,
        "profiles": served.profiles,
        "prompts": sorted(model.prompts),
    }


async def info(server: Server, body: None, call: Call) -> Any:
    """The first model as text-embeddings-inference describes it, and all of them in ``models``."""
    models = [describe(served) for served in server.registry]
    return {**models[0], "models": models}


ROUTES = [
    Route("POST", "/embed", embed, "Sentence embeddings", schemas.Embed),
    Route("POST", "/embed_all", embed_all, "Hidden states of every token", schemas.EmbedAll),
    Route("POST", "/predict", predict, "Labels of texts or pairs", schemas.Predict),
    Route("POST", "/rerank", rerank, "Documents by relevance to a query", schemas.Rerank),
    Route("POST", "/v1/rerank", rerank, "Alias of /rerank", schemas.Rerank),
    Route("POST", "/v2/rerank", rerank, "Alias of /rerank", schemas.Rerank),
    Route("POST", "/similarity", similarity, "Cosine similarities", schemas.Similarity),
    Route("POST", "/tokenize", tokenize, "Tokens of texts", schemas.Tokenize),
    Route("POST", "/decode", decode, "Texts of token ids", schemas.Decode),
    Route("POST", "/tag", tag, "Entities of texts", schemas.Tag),
    Route("POST", "/answer", answer, "Answer to a question in a context", schemas.Answer),
    Route("POST", "/", root, "The route of the model's task", schemas.Root),
    Route("GET", "/info", info, "The served models"),
]
