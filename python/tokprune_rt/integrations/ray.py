"""Embeddings in Ray Data pipelines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tokprune_rt.integrations.extras import require
from tokprune_rt.loading import load
from tokprune_rt.policy import PolicySource


class TokpruneEmbedder:
    """A stateful function for ``Dataset.map_batches``: every actor loads the model once.

    ::

        ds.map_batches(
            TokpruneEmbedder,
            fn_constructor_kwargs={"model": "all-MiniLM-L6-v2", "column": "body"},
            batch_format="numpy",
            num_cpus=4,
            concurrency=2,
        )

    The vectors are those of `tokprune_rt.Model.encode`, bit for bit, however the data set is cut
    into blocks and batches.

    Args:
        model: as in `tokprune_rt.load`; a folder must be there on every node.
        column: column with the texts.
        output_column: column for the vectors, float32 [dimension]; one of that name is replaced.
        policy: as in `tokprune_rt.load`, but ``"off"`` unless given.
        precision: as in `tokprune_rt.load`.
        threads: worker threads; default: the CPUs that Ray has given to the actor (``num_cpus``).
        normalize_embeddings, prompt_name, profile, batch_size: as in `tokprune_rt.Model.encode`.

    Raises:
        ImportError: Ray is not installed.
        ValueError, TypeError: as `tokprune_rt.load` and `tokprune_rt.Model.encode`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        column: str = "text",
        output_column: str = "vector",
        policy: PolicySource = "off",
        profile: str | None = None,
        precision: str = "auto",
        threads: int | None = None,
        normalize_embeddings: bool = False,
        prompt_name: str | None = None,
        batch_size: int = 32,
    ) -> None:
        share = _assigned_cpus()
        self._model = load(model, policy, precision, threads if threads is not None else share)
        self._column, self._output_column = column, output_column
        self._options: dict[str, Any] = {
            "normalize_embeddings": normalize_embeddings,
            "prompt_name": prompt_name,
            "profile": profile,
            "batch_size": batch_size,
        }
        # What is wrong with the options shows before the first batch.
        self._model.encode([], **self._options)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with its vectors, float32 [n, dimension].

        Raises ValueError for a missing column, TypeError for a value in it that is no text.
        """
        if self._column not in batch:
            raise ValueError(
                f"the batch has no column {self._column!r}, only {', '.join(map(repr, batch))}"
            )
        vectors = self._model.encode(batch[self._column], **self._options)
        return {**batch, self._output_column: vectors}


def _assigned_cpus() -> int | None:
    """CPUs of this actor, at least one; None in a process that is no worker of Ray's."""
    ray = require("ray", "ray")
    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:
        return None
    return max(1, int(context.get_assigned_resources().get("CPU", 0)))
