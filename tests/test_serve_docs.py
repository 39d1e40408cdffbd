"""The page on serving is right: its curl lines (and the README's), routes and metrics."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BuildModel
from serving import running

import tokprune_rt as tp
from tokprune_rt.serve import create_app

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def models(tiny: BuildModel) -> dict[str, tp.Model]:
    one = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return {
        "all-MiniLM-L6-v2": tp.load(tiny("bert"), threads=1),
        "rank": tp.load(tiny("bert", "sequence-classification", **one), threads=1),
    }


def test_curl_lines(tiny: BuildModel) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    pages = [re.findall(r"^curl .*$", page, re.MULTILINE) for page in (DOCS, README)]
    assert all(pages)
    with running(models(tiny)) as run:
        for line in itertools.chain(*pages):
            arguments = shlex.split(line.replace("localhost:8080", run.url))
            done = subprocess.run(
                [*arguments, "--silent", "--show-error", "--fail"],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, (line, done.stderr)
            body = done.stdout.rpartition("\n\n")[2]
            assert line.endswith("metrics") or json.loads(body)


def test_every_route_and_metric_is_described(tiny: BuildModel) -> None:
    app = create_app(models(tiny))
    for route in app.routes:
        path = getattr(route, "path", "")
        assert re.search(rf"`((GET|POST) )?{re.escape(path)}`", DOCS), path
    server = app.state.server
    names = set(re.findall(r"^# TYPE (\w+)", server.metrics.render().decode(), re.MULTILINE))
    assert names == set(re.findall(r"`((?:te|tokprune)_\w+)`", DOCS)) - {"tokprune_rt"}
    for served in server.registry:
        served.worker.close()
    server.pools.close()


RAY = """
import os, sys, time
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import httpx, numpy as np, ray
from ray import serve as ray_serve
ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
ray_serve.start(http_options={"port": int(sys.argv[1])})
exec(sys.argv[2])
wanted = tp.load("all-MiniLM-L6-v2").encode(["hello"], normalize_embeddings=True)
with httpx.Client(base_url=f"http://127.0.0.1:{sys.argv[1]}", timeout=60) as client:
    for _ in range(8):
        while (found := client.post("/embed", json={"inputs": "hello"})).status_code == 503:
            time.sleep(0.05)
        assert np.array_equal(np.array(found.json(), np.float32), wanted), found.text
ray_serve.shutdown()
"""


def test_ray_serve(minilm_folder: Path) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("ray.serve")
    (example,) = (
        block
        for block in re.findall(r"^```python\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
        if "from ray import serve" in block
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-c", RAY, str(port), example],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
