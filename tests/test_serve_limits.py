"""Keys, limits, malformed requests and what a server says of itself."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import BuildModel
from serving import TIMEOUT, Running, running, wait_for
from starlette.testclient import TestClient

import tokprune_rt as tp
from tokprune_rt import Model
from tokprune_rt.serve import Settings, create_app
from tokprune_rt.serve.served import Served

KEY = "a-key"


@pytest.fixture(scope="module")
def model(tiny: BuildModel) -> Model:
    return tp.load(tiny("bert"), threads=1)


@pytest.fixture(scope="module")
def run(model: Model) -> Iterator[Running]:
    limits = {"max_items": 4, "max_tokens": 100, "max_body_bytes": 2000}
    with running({"m": model}, api_key=KEY, **limits) as found:
        found.client.headers["authorization"] = f"Bearer {KEY}"
        yield found


@pytest.mark.parametrize("given", ["", KEY, "Bearer", "Bearer no", f"Basic {KEY}", "Bearer \xe9"])
def test_the_key_is_asked_for(run: Running, given: str) -> None:
    headers = {"authorization": given.encode("latin-1")}
    with httpx.Client(base_url=run.url, headers=headers) as client:
        response = client.post("/embed", json={"inputs": "a"})
        assert response.status_code == 401
        assert response.json()["error_type"] == "Unauthorized"
        error = client.post("/v1/embeddings", json={"input": "a"}).json()["error"]
        assert error["code"] == "invalid_api_key"
        assert client.get("/info").status_code == 401
        for path in ("/health", "/live", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 200
    assert run.post("/embed", inputs="a")


@pytest.mark.parametrize(
    ("path", "body", "status", "fragment"),
    [
        ("/embed", {}, 422, "inputs: Field required"),
        ("/embed", {"inputs": 3}, 422, "inputs"),
        ("/embed", {"inputs": [3]}, 422, "inputs"),
        ("/embed", {"inputs": None}, 422, "inputs"),
        ("/embed", {"inputs": "a", "normalize": "yes"}, 422, "normalize"),
        ("/embed", {"inputs": "a", "truncation_direction": "up"}, 422, "truncation_direction"),
        ("/embed", [], 422, "object"),
        ("/embed", {"inputs": []}, 400, "inputs is empty"),
        ("/embed", {"inputs": ""}, 400, "inputs is empty"),
        ("/embed", {"inputs": ["a", ""]}, 200, ""),
        ("/embed_all", {"inputs": ""}, 400, "inputs is empty"),
        ("/v1/embeddings", {"input": ["a", ""]}, 200, ""),
        ("/embed", {"inputs": ["a"] * 5}, 413, "inputs has 5 texts, the limit is 4"),
        ("/embed", {"inputs": ["a " * 40] * 4}, 413, "168 tokens, the limit is 100"),
        ("/embed", {"inputs": "a" * 3000}, 413, "larger than the limit of 2000 bytes"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "sentences"),
        ("/rerank", {"query": "a", "texts": ["b"]}, 422, "none is served"),
        ("/decode", {"ids": [-1]}, 422, "ids has -1"),
        ("/decode", {"ids": [[]]}, 200, ""),
        ("/tokenize", {"inputs": []}, 400, "inputs is empty"),
        ("/tokenize", {"inputs": ""}, 400, "inputs is empty"),
        ("/answer", {"question": "a", "context": "b"}, 422, "question-answering"),
        ("/", {"inputs": {"a": 1}}, 422, "inputs"),
        ("/", {}, 422, "inputs"),
    ],
)
def test_bad_bodies(run: Running, path: str, body: Any, status: int, fragment: str) -> None:
    response = run.client.post(path, json=body)
    assert response.status_code == status, response.text
    if status != 200:
        found = response.json()
        assert set(found) == {"error", "error_type"} and fragment in found["error"]


@pytest.mark.parametrize("raw", [b"", b"{", b'{"inputs": "\\ud800"}', b"\xff\xfe", b"[" * 1500])
def test_what_is_no_json(run: Running, raw: bytes) -> None:
    response = run.client.post("/embed", content=raw)
    assert response.status_code == 422 and response.json()["error_type"] == "Validation"


def test_errors_do_not_repeat_the_text(run: Running) -> None:
    response = run.client.post("/embed", json={"inputs": {"secret words": 1}})
    assert response.status_code == 422 and "secret" not in response.text


def test_a_body_that_does_not_say_its_size(run: Running) -> None:
    def parts() -> Iterator[bytes]:
        yield b'{"inputs": "'
        for _ in range(100):
            yield b"word " * 100

    response = run.client.post("/embed", content=parts())
    assert response.status_code == 413


def test_unknown_paths_and_methods(run: Running) -> None:
    assert run.client.post("/nothing", json={}).status_code == 404
    response = run.client.get("/embed")
    assert response.status_code == 405 and response.headers["allow"] == "POST"
    assert response.json()["error_type"] == "NotFound"


def test_a_body_that_never_comes(model: Model) -> None:
    with running({"m": model}, timeout_s=0.3) as run:
        port = int(run.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as client:
            client.sendall(b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n{")
            assert b" 408 " in client.recv(1000).split(b"\r\n")[0]
        wait_for(lambda: run.server.open == 0)


def test_it_says_when_it_is_not_ready(model: Model) -> None:
    server = create_app({"m": model}).state.server
    assert not server.ready
    with running({"m": model}) as run:
        run.server.ready = False
        assert run.client.get("/health").status_code == 503
        assert run.client.get("/ready").status_code == 503
        assert run.client.get("/live").status_code == 200
        response = run.client.post("/embed", json={"inputs": "a"})
        assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
        run.server.ready = True
        assert run.client.get("/health").status_code == 200


def test_a_model_that_cannot_be_warmed_up(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(served: Served) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(Served, "warm_up", broken)
    app = create_app({"m": model})
    with TestClient(app) as client:
        wait_for(lambda: app.state.server.failure)
        found = [client.get(path) for path in ("/health", "/ready", "/live")]
        found.append(client.post("/embed", json={"inputs": "a"}))
    for response in found:
        assert response.status_code == 503 and "retry-after" not in response.headers
        wanted = "m could not be warmed up: RuntimeError: on purpose"
        assert response.json() == {"error": wanted, "error_type": "Unhealthy"}


def test_the_command_ends_when_a_model_cannot_be_warmed_up(tiny: BuildModel) -> None:
    code = (
        "from tokprune_rt.cli import main\n"
        "from tokprune_rt.serve.served import Served\n"
        "Served.warm_up = lambda self: 1 / 0\n"
        "main()"
    )
    command = ["serve", f"mini={tiny('bert')}", "--port", str(free_port()), "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 2
    wanted = "error: mini could not be warmed up: ZeroDivisionError: division by zero"
    assert done.stderr.splitlines()[-1] == wanted


def test_a_dead_encoder_is_not_healthy(model: Model) -> None:
    with running({"m": model}) as run:
        (served,) = run.server.registry
        served.worker.close()
        for path in ("/health", "/live"):
            assert "thread has ended" in run.client.get(path).json()["error"]
        run.server.draining = True  # an ordinary end
        assert run.client.get("/live").status_code == 200
        assert run.post("/embed", 503, inputs="a")["error_type"] == "Unhealthy"


def test_metrics(model: Model) -> None:
    with running({"m": model}) as run:
        for _ in range(3):
            run.post("/embed", inputs=["The fox.", "A dog and a cat."])
        run.post("/embed", 400, inputs=[])
        tokens = sum(map(len, model.tokenizer.tokenize(["The fox.", "A dog and a cat."])))
        assert run.metric('te_request_count{method="embed"}') == 4
        assert run.metric('te_request_success{method="embed"}') == 3
        assert run.metric('te_request_failure{err="empty"}') == 1
        assert run.metric('te_queue_size{model="m"}') == 0
        assert run.metric("te_batch_next_size_sum") == 6
        assert run.metric("te_batch_next_tokens_sum") == 3 * tokens
        assert run.metric("te_request_duration_count") == 3
        assert run.metric("te_request_queue_duration_count") == 3
        assert run.metric('tokprune_tokens_total{model="m"}') == 3 * tokens
        assert run.metric('tokprune_tokens_kept_total{model="m"}') == 3 * tokens
        assert run.metric('tokprune_calls_total{model="m",profile="off"}') == 3
        text = run.client.get("/metrics").text
        assert "# TYPE te_request_count counter" in text
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            assert line.startswith("# ") or (name and float(value) >= 0)
        counts = [
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith("te_batch_next_tokens_bucket")
        ]
        assert counts == sorted(counts) and counts[-1] == 3


def test_the_log_has_no_texts(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tokprune_rt.serve"), running({"m": model}) as run:
        run.post("/embed", inputs="a secret text")
        run.post("/embed", 422, inputs={"a secret text": 1})
        wait_for(lambda: len([r for r in caplog.records if "route" in r.getMessage()]) == 2)
    entries = [json.loads(record.getMessage()) for record in caplog.records]
    assert "secret" not in caplog.text
    requests = [entry for entry in entries if "route" in entry]
    assert [entry["status"] for entry in requests] == [200, 422]
    assert requests[0]["items"] == 1 and requests[0]["tokens"] > 3 and requests[0]["ms"] > 0


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"max_items": 0}, "max_items must be a positive number, got 0"),
        ({"timeout_s": float("nan")}, "timeout_s must be a positive number"),
        ({"slo_ms": -1.0}, "slo_ms"),
        ({"api_key": " "}, "api_key is empty"),
        ({"api_key": "my key"}, "api_key has white space at position 3 of 6"),
        ({"api_key": "my\nkey"}, "api_key has white space at position 3 of 6"),
        ({"api_key": "schl\xfcssel"}, "not visible ASCII at position 5 of 9"),
        ({"api_key": "my\x00key"}, "not visible ASCII at position 3 of 6"),
        ({"min_profile": "fast"}, "min_profile 'fast'"),
    ],
)
def test_bad_settings(changes: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ValueError, match=fragment) as caught:
        Settings(**changes)
    assert (changes.get("api_key", "").strip() or "?") not in str(caught.value)


def test_a_key_from_a_file_with_a_line_break(model: Model) -> None:
    with running({"m": model}, api_key=f" {KEY}\n") as run:
        run.client.headers["authorization"] = f"Bearer {KEY}"
        assert run.post("/embed", inputs="a")
        assert KEY not in repr(run.server.settings)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_and_ends(tiny: BuildModel, tmp_path: Path, told: int) -> None:
    port, folder = free_port(), tiny("bert")
    url = f"http://127.0.0.1:{port}"
    command = ["-m", "tokprune_rt.cli", "serve", f"mini={folder}", "--port", str(port)]
    if told == signal.SIGINT:
        command += ["--host", "0.0.0.0", "--slo-ms", "50"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command, "--threads", "1"],
            stderr=file,
            env=os.environ | ({"TOKPRUNE_API_KEY": KEY} if told == signal.SIGTERM else {}),
        )
    try:

        def healthy() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return httpx.get(url + "/health").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(healthy)
        body = {"inputs": ["the quick brown fox " * 12] * 2000, "model": "mini"}
        found: list[httpx.Response] = []
        headers = {"authorization": f"Bearer {KEY}"}

        def send() -> None:
            found.append(httpx.post(url + "/embed", json=body, headers=headers, timeout=TIMEOUT))

        thread = threading.Thread(target=send)
        thread.start()

        def working() -> bool:
            text = httpx.get(url + "/metrics").text
            return "tokprune_requests_in_flight 1.0" in text

        wait_for(working)
        process.send_signal(told)
        thread.join(TIMEOUT)
        assert found[0].status_code == 200 and len(found[0].json()) == 2000
        assert process.wait(TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()
    lines = log.read_text().splitlines()
    if told == signal.SIGTERM:
        assert lines[0] == f"note: mini at {url}"
    else:
        assert lines[0].startswith("note: mini has no profile that prunes harder")
        assert lines[1] == f"note: mini at http://0.0.0.0:{port}"
        assert lines[2].startswith(f"note: whoever reaches 0.0.0.0:{port} can use this server")
    assert "note: stopping: 1 request to finish" in lines
    assert json.loads(lines[-1])["status"] == 200


def test_a_port_that_is_taken(tiny: BuildModel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = ["-m", "tokprune_rt.cli", "serve", str(tiny("bert")), "--port", str(port)]
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 2
    wanted = f"error: 127.0.0.1:{port} cannot be listened on: Address already in use"
    assert done.stderr.splitlines() == [wanted]
