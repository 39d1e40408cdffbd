"""Requests share calls of the encoder, and none of them can tell."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from conftest import BuildModel
from serving import POLICY, TIMEOUT, Parallel, Running, running, wait_for

import tokprune_rt as tp
from tokprune_rt import Model
from tokprune_rt.serve import Settings, create_app
from tokprune_rt.serve.jobs import Profile

TEXTS = [" ".join(f"word{i} fox" for i in range(n)) for n in (1, 9, 3, 20, 1, 5)]


@pytest.fixture(scope="module")
def model(tiny: BuildModel) -> Model:
    return tp.load(tiny("bert"), policy=POLICY, threads=2)


@pytest.fixture
def run(model: Model) -> Iterator[Running]:
    with running({"m": model}, max_queue_ms=60_000) as found:
        yield found


def waiting(run: Running) -> int:
    (served,) = run.server.registry
    return served.worker.waiting[0]


def test_merged_requests_get_the_bits_of_single_ones(run: Running, model: Model) -> None:
    gate, parallel = run.gate(), Parallel(run)
    parallel.post("/embed", inputs="blocks the encoder")
    wait_for(lambda: gate.entered == 1)
    for text in TEXTS:
        parallel.post("/embed", inputs=text)
    parallel.post("/embed", inputs=TEXTS)
    parallel.post("/embed", inputs=TEXTS[0], profile="fast")
    wait_for(lambda: waiting(run) == len(TEXTS) + 2)
    gate.release()
    responses = parallel.join()
    # One call for all that agree on a profile, whatever their lengths.
    assert sorted(map(len, gate.calls)) == [1, 1, 2 * len(TEXTS)]
    for place, text in enumerate(TEXTS):
        found = np.array(responses[place + 1].json(), dtype=np.float32)
        assert found.tobytes() == model.encode(text, True).tobytes()
        alone = httpx.post(run.url + "/embed", json={"inputs": text})
        assert alone.content == responses[place + 1].content
    together = np.array(responses[len(TEXTS) + 1].json(), dtype=np.float32)
    assert together.tobytes() == model.encode(TEXTS, True).tobytes()
    assert run.metric("tokprune_batch_requests_sum") >= len(TEXTS)


def test_traffic_does_not_change_a_byte(run: Running, model: Model) -> None:
    """Several clients at once, some of which give up: the others get what they get alone."""
    alone = {
        (text, profile): model.encode([text], True, profile=profile).tobytes()
        for text in TEXTS
        for profile in ("off", "fast")
    }
    wrong: list[str] = []

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        with httpx.Client(base_url=run.url, timeout=TIMEOUT) as client:
            for _ in range(25):
                text, profile = rng.choice(list(alone))
                body = {"inputs": text, "profile": profile}
                if rng.random() < 0.2:
                    with contextlib.suppress(httpx.TimeoutException):
                        client.post("/embed", json=body, timeout=0.001)
                    continue
                response = client.post("/embed", json=body)
                found = np.array(response.json(), dtype=np.float32).tobytes()
                if found != alone[text, profile]:
                    wrong.append(response.text)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert not wrong
    wait_for(lambda: run.server.open == 0)
    assert waiting(run) == 0


def test_a_short_request_overtakes_a_long_one(model: Model) -> None:
    with running({"m": model}, max_batch_tokens=128, max_queue_ms=60_000) as run:
        (served,) = run.server.registry
        gate, parallel = run.gate(), Parallel(run)
        parallel.post("/embed", inputs="blocks the encoder")
        wait_for(lambda: gate.entered == 1)
        # As if the encoder were slow: the long request's own work takes seconds.
        served._speed.record(Profile(None), 10_000_000, 20_000.0)
        parallel.post("/embed", inputs=["word " * 62] * 50)
        wait_for(lambda: waiting(run) == 1)
        parallel.post("/embed", inputs="short")
        wait_for(lambda: waiting(run) == 2)
        gate.release()
        assert [r.status_code for r in parallel.join().values()] == [200] * 3
        # The short one goes first, and the rest of its call is filled with the long one's.
        (short,) = model.tokenizer.tokenize(["short"])
        assert gate.calls[1] == [len(short), 64]
        assert sum(map(len, gate.calls)) == 52


def test_a_client_that_leaves_takes_its_work_along(run: Running) -> None:
    gate, parallel = run.gate(), Parallel(run)
    parallel.post("/embed", inputs="blocks the encoder")
    wait_for(lambda: gate.entered == 1)
    port = int(run.url.rpartition(":")[2])
    body = b'{"inputs": "' + b"gone " * 30 + b'"}'
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(
            b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        wait_for(lambda: waiting(run) == 1)
    wait_for(lambda: waiting(run) == 0)
    parallel.post("/embed", inputs="stays")
    wait_for(lambda: waiting(run) == 1)
    gate.release()
    assert [r.status_code for r in parallel.join().values()] == [200, 200]
    assert len(gate.calls) == 2 and all(len(call) == 1 for call in gate.calls)
    assert all(length < 30 for call in gate.calls for length in call)
    assert run.metric('tokprune_cancelled_total{model="m"}') == 1
    assert run.metric("tokprune_requests_in_flight") == 0


def test_one_that_fails_does_not_hurt_the_others(run: Running, model: Model) -> None:
    gate, parallel = run.gate(), Parallel(run)
    poison = "poison " * 20
    (tokens,) = model.tokenizer.tokenize([poison])
    gate.fail = lambda sequences: any(len(item) == len(tokens) for item in sequences)
    parallel.post("/embed", inputs="blocks the encoder")
    wait_for(lambda: gate.entered == 1)
    good = [parallel.post("/embed", inputs=text) for text in ("a", "b")]
    bad = parallel.post("/embed", inputs=poison)
    wait_for(lambda: waiting(run) == 3)
    gate.release()
    responses = parallel.join()
    assert responses[bad].status_code == 424
    assert responses[bad].json()["error_type"] == "Backend"
    for key, text in zip(good, ("a", "b"), strict=True):
        found = np.array(responses[key].json(), dtype=np.float32)
        assert found.tobytes() == model.encode(text, True).tobytes()
    assert run.post("/embed", inputs="still there")


def test_numbers_that_are_none_are_an_error(run: Running, model: Model) -> None:
    gate = run.gate()
    forward = gate.forward

    def spoiled(sequences, *arguments, **options):  # type: ignore[no-untyped-def]
        result, bounds = forward(sequences, *arguments, **options)
        result["pooled"][0, 3] = np.nan
        return result, bounds

    gate.forward = spoiled  # type: ignore[method-assign]
    gate.release()
    assert "not finite" in run.post("/embed", 424, inputs="a")["error"]


def test_overload_is_refused_and_what_was_accepted_is_answered(model: Model) -> None:
    with running({"m": model}, max_queue_ms=0.5) as run:
        gate, parallel = run.gate(), Parallel(run)
        parallel.post("/embed", inputs="blocks the encoder")
        wait_for(lambda: gate.entered == 1)
        text = "word " * 60
        while 429 not in [r.status_code for r in list(parallel.responses.values())]:
            assert parallel.sent < 200
            parallel.post("/embed", inputs=text)
            wait_for(lambda: waiting(run) + len(parallel.responses) + 1 >= parallel.sent)
        refused = next(r for r in parallel.responses.values() if r.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error_type"] == "Overloaded"
        gate.release()
        codes = [r.status_code for r in parallel.join().values()]
        assert set(codes) == {200, 429} and codes.count(429) == 1
        assert run.metric('te_request_failure{err="overloaded"}') == 1


def test_open_requests_are_limited(model: Model) -> None:
    with running({"m": model}, max_concurrent_requests=2, max_queue_ms=60_000) as run:
        gate, parallel = run.gate(), Parallel(run)
        for _ in range(2):
            parallel.post("/embed", inputs="a")
        wait_for(lambda: run.server.open == 2)
        assert "2 requests are open" in run.post("/embed", 429, inputs="a")["error"]
        error = run.client.post("/v1/embeddings", json={"input": "a"}).json()["error"]
        assert error["code"] == "rate_limit_exceeded"
        gate.release()
        assert [r.status_code for r in parallel.join().values()] == [200, 200]


def test_time_out(model: Model) -> None:
    with running({"m": model}, timeout_s=0.3, max_queue_ms=60_000) as run:
        gate, parallel = run.gate(), Parallel(run)
        for _ in range(2):
            parallel.post("/embed", inputs="a")
        codes = [r.status_code for r in parallel.join().values()]
        assert codes == [504, 504]
        gate.release()
        # The one that waited is never run.
        wait_for(lambda: len(gate.calls) == 1)
        assert run.post("/embed", inputs="b")
        assert len(gate.calls) == 2


def test_a_client_says_how_long_it_waits(run: Running) -> None:
    gate, parallel = run.gate(), Parallel(run)
    parallel.post("/embed", inputs="blocks the encoder")
    wait_for(lambda: gate.entered == 1)
    short = run.client.post("/embed", json={"inputs": "a"}, headers={"x-timeout-ms": "150"})
    assert short.status_code == 504 and short.json()["error_type"] == "Timeout"
    for wrong in ("0", "-1", "soon", "nan"):
        refused = run.client.post("/embed", json={"inputs": "a"}, headers={"x-timeout-ms": wrong})
        assert refused.status_code == 422 and wrong in refused.json()["error"]
    gate.release()
    assert parallel.join()[0].status_code == 200


def test_shutdown_finishes_what_was_accepted(model: Model) -> None:
    with running({"m": model}, max_queue_ms=60_000) as run:
        gate, parallel = run.gate(), Parallel(run)
        parallel.post("/embed", inputs="blocks the encoder")
        wait_for(lambda: gate.entered == 1)
        for text in TEXTS:
            parallel.post("/embed", inputs=text)
        wait_for(lambda: waiting(run) == len(TEXTS))
        threading.Timer(0.5, gate.release).start()
    assert [r.status_code for r in parallel.join().values()] == [200] * (len(TEXTS) + 1)


def test_a_draining_server_takes_nothing_new(run: Running) -> None:
    run.server.draining = True
    assert run.post("/embed", 503, inputs="a")["error_type"] == "Unhealthy"
    assert run.client.get("/health").status_code == 503
    assert run.client.get("/live").status_code == 200


def test_the_profile_follows_the_load(model: Model) -> None:
    settings = {"slo_ms": 5.0, "min_profile": "fast", "profile": "off", "max_queue_ms": 60_000}
    with running({"m": model}, **settings) as run:  # type: ignore[arg-type]
        (served,) = run.server.registry
        assert [level.name for level in served.adaptive.levels] == ["off", None, "fast"]
        first = run.client.post("/embed", json={"inputs": "a"})
        assert first.headers["x-tokprune-profile"] == "off"
        gate, parallel = run.gate(), Parallel(run)
        parallel.post("/embed", inputs="blocks the encoder")
        wait_for(lambda: gate.entered == 1)
        many = [" ".join(TEXTS[3].split()[:40])] * 400
        key = parallel.post("/embed", inputs=many)
        explicit = parallel.post("/embed", inputs="a", profile="off")
        wait_for(lambda: waiting(run) == 2)
        gate.release()
        responses = parallel.join()
        assert responses[key].headers["x-tokprune-profile"] == "fast"
        assert responses[explicit].headers["x-tokprune-profile"] == "off"
        fast = model.encode(many[0], True, profile="fast")
        vectors = np.array(responses[key].json(), dtype=np.float32)
        assert all(row.tobytes() == fast.tobytes() for row in vectors)
        assert run.metric('tokprune_profile{model="m",profile="fast"}') == 1

        def back() -> bool:
            time.sleep(0.1)
            found = run.client.post("/embed", json={"inputs": "a"})
            return found.headers["x-tokprune-profile"] == "off"

        wait_for(back)
        assert run.metric('tokprune_profile{model="m",profile="off"}') == 1
        assert run.metric('tokprune_profile{model="m",profile="fast"}') == 0


def test_levels_need_a_floor_below_the_start(model: Model) -> None:
    with pytest.raises(ValueError, match="min_profile 'off' of m does more work than 'fast'"):
        create_app({"m": model}, Settings(profile="fast", slo_ms=10, min_profile="off"))
    with pytest.raises(ValueError, match="unknown profile 'slow'; m has: default, off, fast"):
        create_app({"m": model}, Settings(profile="slow"))
    with pytest.raises(ValueError, match="there is no model to serve"):
        create_app({})


def test_a_huge_text_does_not_hold_up_short_ones(run: Running) -> None:
    huge = Parallel(run)
    huge.post("/embed", inputs="many words " * 150_000)
    wait_for(lambda: run.server.open == 1)
    seconds = []
    while run.server.open:
        start = time.perf_counter()
        run.post("/embed", inputs="a")
        seconds.append(time.perf_counter() - start)
    assert huge.join()[0].status_code == 200
    assert len(seconds) >= 3


def test_the_interpreter_runs_while_the_encoder_works(model: Model) -> None:
    """The engine's calls release the GIL: another thread counts on meanwhile."""
    ids = [np.full(64, 50, dtype=np.int32)] * 400
    counted, done = [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            counted[0] += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    model.forward(ids)
    before = counted[0]
    start = time.perf_counter()
    model.engine.forward(model_tokens(ids), "pooled", None)
    seconds = time.perf_counter() - start
    during = counted[0] - before
    done.set()
    thread.join()
    # Held throughout, the lock would let the other thread run not even once per switch interval.
    assert during > 10 * seconds / 0.005


def model_tokens(ids):  # type: ignore[no-untyped-def]
    from tokprune_rt.tokenizer import Tokens

    return [Tokens(row, np.zeros_like(row), np.zeros_like(row)) for row in ids]
