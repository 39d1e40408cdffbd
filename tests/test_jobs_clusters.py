"""Embeddings on local clusters of Ray and of Spark."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BuildModel

import tokprune_rt
from tokprune_rt.policy import preset

TEXTS = [f"The weather in London in {i} was {'very ' * (i % 7)}good." for i in range(60)]
POLICY = preset("quantile", layers=3, q=0.4, profiles={"mild": {"steps": [{"q": 0.1}]}})


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster in processes of this machine; two of its CPUs are for what feeds the actors."""
    pytest.importorskip("pyarrow")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray = pytest.importorskip("ray")
        data = pytest.importorskip("ray.data")
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        data.DataContext.get_current().enable_progress_bars = False
        yield ray
        ray.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_ray_data(ray: Any, tiny: BuildModel) -> None:
    from tokprune_rt.integrations.ray import TokpruneEmbedder

    folder = str(tiny("bert"))
    rows = ray.data.from_items([{"n": i, "body": text} for i, text in enumerate(TEXTS)])
    arguments = {"model": folder, "column": "body", "policy": POLICY, "profile": "mild"}
    embedded = rows.repartition(7).map_batches(
        TokpruneEmbedder,
        fn_constructor_kwargs=arguments,
        batch_format="numpy",
        batch_size=16,
        concurrency=2,
    )
    found = sorted(embedded.take_all(), key=lambda row: row["n"])
    assert [row["body"] for row in found] == TEXTS
    vectors = np.stack([row["vector"] for row in found])
    model = tokprune_rt.load(folder, policy=POLICY)
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, model.encode(TEXTS, profile="mild"))

    # An actor takes the CPUs it was given, no more.
    class Threads(TokpruneEmbedder):
        def threads(self) -> int:
            return self._model.threads

    for count in (1, 2):
        actor = ray.remote(num_cpus=count)(Threads).remote(folder)
        assert ray.get(actor.threads.remote()) == count


@pytest.mark.filterwarnings("ignore")
def test_ray_embedder_by_itself(tiny: BuildModel) -> None:
    pytest.importorskip("ray")
    from tokprune_rt.integrations.ray import TokpruneEmbedder

    folder = tiny("bert")
    embedder = TokpruneEmbedder(folder, output_column="e", normalize_embeddings=True, threads=1)
    batch = {"text": np.array(TEXTS[:5], object), "n": np.arange(5)}
    found = embedder(batch)
    assert list(found) == ["text", "n", "e"] and list(batch) == ["text", "n"]
    assert np.array_equal(found["e"], tokprune_rt.load(folder).encode(TEXTS[:5], True))
    with pytest.raises(ValueError, match="no column 'text', only 'n'"):
        embedder({"n": np.arange(2)})
    with pytest.raises(TypeError, match=r"texts\[1\] must be a str, got NoneType"):
        embedder({"text": np.array(["a", None], object)})
    with pytest.raises(ValueError, match="unknown profile 'fast'"):
        TokpruneEmbedder(folder, profile="fast")


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Spark on two threads of this machine."""
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    sql = pytest.importorskip("pyspark.sql")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("Spark needs a Java")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        builder = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
        builder = builder.config("spark.driver.host", "127.0.0.1")
        builder = builder.config("spark.driver.bindAddress", "127.0.0.1")
        builder = builder.config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("spark")))
        builder = builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", "9")
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("OFF")
        yield session
        session.stop()


@pytest.mark.filterwarnings("ignore")
def test_spark(spark: Any, tiny: BuildModel, tmp_path: Path) -> None:
    from tokprune_rt.integrations.spark import embedding_udf

    folder = tiny("bert")
    frame = spark.createDataFrame(list(enumerate(TEXTS)), "n int, body string").repartition(4)
    embed = embedding_udf(str(folder), policy=POLICY, profile="mild", normalize_embeddings=True)
    found = frame.withColumn("vector", embed("body"))
    assert found.schema["vector"].dataType.simpleString() == "array<float>"
    found.write.parquet(str(tmp_path / "out"))
    rows = sorted(spark.read.parquet(str(tmp_path / "out")).collect(), key=lambda row: row["n"])
    assert [row["body"] for row in rows] == TEXTS
    vectors = np.array([row["vector"] for row in rows], np.float32)
    model = tokprune_rt.load(folder, policy=POLICY)
    assert np.array_equal(vectors, model.encode(TEXTS, True, profile="mild"))

    with pytest.raises(Exception, match="must be a str, got"):
        spark.createDataFrame([("a",), (None,)], "body string").select(embed("body")).collect()
    unknown = embedding_udf(str(folder), profile="fast")
    with pytest.raises(Exception, match="unknown profile 'fast'"):
        frame.select(unknown("body")).collect()


@pytest.mark.filterwarnings("ignore")
def test_a_spark_worker_loads_once(spark: Any, tiny: BuildModel) -> None:
    from pyspark.sql.functions import udf

    from tokprune_rt.integrations import spark as module

    folder = str(tiny("bert"))
    embed = module.embedding_udf(folder)
    frame = spark.createDataFrame([(text,) for text in TEXTS], "body string").repartition(8)
    for _ in range(2):
        frame.select(embed("body")).collect()

    @udf("string")
    def state(text: str) -> str:
        import os

        from tokprune_rt.integrations.spark import _worker_model

        found = _worker_model.cache_info()
        return f"{os.getpid()} {found.misses} {found.hits}"

    workers = {row[0] for row in frame.select(state("body")).collect()}
    counts = [tuple(map(int, worker.split()[1:])) for worker in workers]
    # 16 tasks went to at most two processes, which had loaded nothing else.
    assert all(misses <= 2 for misses, _ in counts) and sum(hits for _, hits in counts) >= 12
