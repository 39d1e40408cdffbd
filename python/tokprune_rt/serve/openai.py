"""OpenAI's routes."""

from __future__ import annotations

import base64
from typing import Any

from tokprune_rt.serve import registry as need
from tokprune_rt.serve import schemas, tasks
from tokprune_rt.serve.errors import empty, invalid
from tokprune_rt.serve.routing import Route, Server
from tokprune_rt.serve.served import Call


async def embeddings(server: Server, body: schemas.Embeddings, call: Call) -> Any:
    """Embeddings of length 1, as lists or as base64 of little-endian float32."""
    served = server.registry.pick(body.model, need.embeds)
    if not body.input:
        raise empty("input")
    texts = [body.input] if isinstance(body.input, str) else body.input
    if any(not isinstance(text, str) for text in texts):
        raise invalid(
            "input holds token ids, which another model's tokenizer made; send texts. For "
            "LangChain's OpenAIEmbeddings set check_embedding_ctx_length=False",
            "input",
        )
    vectors = await tasks.embeddings(
        served,
        call,
        [str(text) for text in texts],
        served.requested(body.profile),
        dimensions=body.dimensions,
        what="input",
    )
    packed = body.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if packed else row,
        }
        for index, row in enumerate(vectors)
    ]
    usage = {"prompt_tokens": call.tokens, "total_tokens": call.tokens}
    return {"object": "list", "data": data, "model": served.name, "usage": usage}


async def models(server: Server, body: None, call: Call) -> Any:
    """The served models."""
    data = [
        {"id": served.name, "object": "model", "created": 0, "owned_by": "tokprune"}
        for served in server.registry
    ]
    return {"object": "list", "data": data}


_EMBEDDINGS = schemas.Embeddings
ROUTES = [
    Route("POST", "/v1/embeddings", embeddings, "OpenAI's embeddings", _EMBEDDINGS, "openai"),
    Route("POST", "/embeddings", embeddings, "Alias of /v1/embeddings", _EMBEDDINGS, "openai"),
    Route("GET", "/v1/models", models, "OpenAI's list of models", dialect="openai"),
]
