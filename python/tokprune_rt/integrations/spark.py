"""Embeddings in Spark data frames."""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Iterator
from types import GenericAlias
from typing import Any

from tokprune_rt.integrations.extras import require
from tokprune_rt.loading import load
from tokprune_rt.model import Model
from tokprune_rt.policy import PolicySource


def embedding_udf(
    model: str | os.PathLike[str],
    *,
    policy: PolicySource = "off",
    profile: str | None = None,
    precision: str = "auto",
    threads: int | None = None,
    normalize_embeddings: bool = False,
    prompt_name: str | None = None,
    batch_size: int = 32,
) -> Any:
    """A pandas UDF from a column of texts to ``array<float>``, of the iterator form.

    ::

        embed = embedding_udf("all-MiniLM-L6-v2")
        frame.withColumn("vector", embed("text"))

    Every Python worker loads the model once and keeps it for its next tasks. The vectors are those
    of `tokprune_rt.Model.encode`, bit for bit. A null is refused; filter such rows out before.

    Args:
        model: as in `tokprune_rt.load`; a folder must be there on every node.
        policy: as in `tokprune_rt.load`, but ``"off"`` unless given.
        precision: as in `tokprune_rt.load`.
        threads: worker threads; default: the CPUs of a task (``spark.task.cpus``), as Spark runs
            as many tasks at a time as there are CPUs for.
        normalize_embeddings, prompt_name, profile, batch_size: as in `tokprune_rt.Model.encode`.

    Raises:
        ImportError: PySpark, pandas or pyarrow is not installed.

    A worker raises what `tokprune_rt.load` and `tokprune_rt.Model.encode` do, which Spark shows as
    a ``PythonException``.
    """
    require("pyspark", "spark")
    require("pyarrow", "spark")
    pandas = require("pandas", "spark")
    functions = require("pyspark.sql.functions", "spark")
    arguments = pickle.dumps((model, policy, precision, threads))
    options: dict[str, Any] = {
        "normalize_embeddings": normalize_embeddings,
        "prompt_name": prompt_name,
        "profile": profile,
        "batch_size": batch_size,
    }

    def embed(batches: Any) -> Any:
        loaded = _worker_model(arguments)
        for texts in batches:
            vectors = loaded.encode(texts.tolist(), **options)
            yield pandas.Series(list(vectors), index=texts.index)

    # Spark learns the form from the types, which cannot be written where pandas is not imported.
    series = GenericAlias(Iterator, (pandas.Series,))
    embed.__annotations__ = {"batches": series, "return": series}
    return functions.pandas_udf("array<float>")(embed)


@functools.lru_cache(maxsize=1)
def _worker_model(arguments: bytes) -> Model:
    model, policy, precision, threads = pickle.loads(arguments)
    return load(model, policy, precision, threads if threads is not None else _task_cpus())


def _task_cpus() -> int:
    context = require("pyspark", "spark").TaskContext.get()
    return 1 if context is None else int(context.cpus())
