"""The page on serving is right: its curl lines (and the README's), routes and metrics."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
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
