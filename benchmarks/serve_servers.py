"""Servers for benchmarks/serve_load.py: how each is started, asked and checked.

Run as a script, it is sentence-transformers behind FastAPI, as its users write it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from serve_clients import Target

import tokprune_rt
from tokprune_rt.loader import resolve

NAMES = ("tokprune", "tokprune int8", "sentence-transformers", "infinity")
_START_SECONDS = 120.0
# Least cosine to the dense fp32 embedding of the same text.
_CLOSE = {"tokprune int8": 0.98}
_CHECKED = (
    "A man is eating.",
    "The quick brown fox jumps over the lazy dog. " * 8,
    "When the branch line was closed the villages lost more than a way to the market. " * 30,
)


def _tei(text: str) -> dict[str, Any]:
    return {"inputs": text}


def _tei_vector(answer: Any) -> list[float]:
    found: list[float] = answer[0]
    return found


def _openai(text: str) -> dict[str, Any]:
    return {"model": "m", "input": text}


def _openai_vector(answer: Any) -> list[float]:
    found: list[float] = answer["data"][0]["embedding"]
    return found


def _command(
    name: str, port: int, arguments: argparse.Namespace, extra: Sequence[str]
) -> list[str]:
    folder = arguments.model
    if name.startswith("tokprune"):
        precision = "int8" if name.endswith("int8") else "fp32"
        start = [sys.executable, "-m", "tokprune_rt.cli", "serve", f"m={folder}"]
        return [
            *start,
            *("--port", str(port), "--threads", str(arguments.threads)),
            *("--precision", precision, *extra),
        ]
    if name == "infinity":
        return [
            *(arguments.infinity, "v2", "--model-id", folder, "--served-model-name", "m"),
            *("--engine", "torch", "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)),
            *("--log-level", "error"),
        ]
    return [sys.executable, __file__, folder, str(port), str(arguments.threads)]


@contextmanager
def copied(model: str, longest: int) -> Iterator[str]:
    """A folder with the model's files that cuts texts at so many tokens only."""
    with TemporaryDirectory() as name:
        folder = Path(name) / "model"
        shutil.copytree(resolve(model), folder)
        settings = folder / "sentence_bert_config.json"
        stated = json.loads(settings.read_text())
        settings.write_text(json.dumps(stated | {"max_seq_length": longest}))
        yield str(folder)


@contextmanager
def serving(name: str, arguments: argparse.Namespace, *extra: str) -> Iterator[Target]:
    """A server that answers as it should; ``extra`` are options of `tokprune serve`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    threads = str(arguments.threads)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "INFINITY_ANONYMOUS_USAGE_STATS": "0",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = _command(name, port, arguments, extra)
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment)
    try:
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(url + "/health"):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{name} does not start: {' '.join(command)}") from None
                time.sleep(0.2)
        if name == "infinity":
            target = Target(name, url, "/embeddings", _openai, _openai_vector, process.pid)
        else:
            target = Target(name, url, "/embed", _tei, _tei_vector, process.pid)
        _check(target, arguments.model, bool(extra))
        yield target
    finally:
        process.terminate()
        process.wait()


def _check(target: Target, model: str, pruned: bool) -> None:
    """ValueError unless the server gives the model's embeddings."""
    wanted = tokprune_rt.load(model, policy="off").encode(list(_CHECKED), normalize_embeddings=True)
    least = _CLOSE.get(target.name, 0.9999)
    for text, right in zip(_CHECKED, wanted, strict=True):
        body = target.body(text) | ({"profile": "off"} if pruned else {})
        request = urllib.request.Request(
            target.url + target.path,
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            found = np.array(target.vector(json.load(response)))
        cosine = float(found @ right) / float(np.linalg.norm(found))
        if not cosine >= least:
            raise ValueError(f"{target.name}: cosine {cosine:.6f} to the model's own embedding")


def sentence_transformers(folder: str, port: int, threads: int) -> None:
    """sentence-transformers behind FastAPI."""
    import torch
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    encoder = SentenceTransformer(folder, device="cpu")
    app = FastAPI()

    class Body(BaseModel):
        inputs: str | list[str]

    def embed(body: Body) -> list[list[float]]:
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        found: list[list[float]] = encoder.encode(
            texts, normalize_embeddings=True, show_progress_bar=False
        ).tolist()
        return found

    # The annotation is a local class, which a string could not name.
    embed.__annotations__["body"] = Body
    app.post("/embed")(embed)
    app.get("/health")(lambda: {})
    uvicorn.run(app, port=port, log_level="error")


if __name__ == "__main__":
    sentence_transformers(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
