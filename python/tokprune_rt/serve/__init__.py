"""A server that speaks text-embeddings-inference and OpenAI; needs the extra ``serve``.

Requests are tokenized, long ones beside the event loop, and merged, ragged, into the next call of
the encoder: continuous batching by a budget of tokens, without padding. The same text gets the same
bytes whatever it is batched with. `tokprune serve` is its command.
"""

from tokprune_rt.serve.app import create_app
from tokprune_rt.serve.run import run
from tokprune_rt.serve.settings import Settings

__all__ = ["Settings", "create_app", "run"]
