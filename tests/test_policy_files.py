"""Tensors, files, round trips and hashes of policies."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policy_documents import (
    GROUPS,
    MODEL,
    SELECTS,
    TOPK,
    Document,
    example,
    grouping,
    one_step,
    put,
    refused,
)
from safetensors.numpy import save_file

from tokprune_rt.policy import (
    Policy,
    PolicyError,
    bind_policy,
    compile_plan,
    find_policy,
    load_policy,
    parse_policy,
    policy_hash,
)

# Tensors


def with_table(rows: int = 100, index: str = "token") -> Document:
    score = {"kind": "table", "tensor": "idf", "index": index}
    document = one_step({"kind": "ratio", "ratio": 0.5}, score, site="embed", layers=[0])
    return {**document, "tensors": {"idf": np.linspace(0, 1, rows, dtype=np.float32)}}


def test_tables() -> None:
    policy = bind_policy(parse_policy(with_table()), MODEL)
    table = compile_plan(policy)["scores"][0]["table"]  # type: ignore[index]
    assert table.dtype == np.float32 and table.shape == (100,)
    for rows in (99, 101):
        with pytest.raises(PolicyError, match=rf"{rows} rows; allowed: 100 rows"):
            bind_policy(parse_policy(with_table(rows)), MODEL)
    bind_policy(parse_policy(with_table(64, "position")), MODEL)
    with pytest.raises(PolicyError, match="at least 64 rows"):
        bind_policy(parse_policy(with_table(63, "position")), MODEL)


@pytest.mark.parametrize(
    ("tensors", "fragment"),
    [
        ({}, "$.scores.imp.tensor"),
        ({"idf": np.ones((2, 2), np.float32)}, "[2, 2]"),
        ({"idf": np.ones(0, np.float32)}, "[0]"),
        ({"idf": np.ones(3)}, "float64"),
        ({"idf": [1.0, 2.0]}, "list"),
        ({"idf": np.array([1, np.nan, 2], np.float32)}, "row 1"),
        ({"idf": np.array([np.inf], np.float32)}, "row 0"),
        ({"idf": np.ones(3, np.float32), "more": np.ones(3, np.float32)}, '"more"'),
    ],
)
def test_bad_tensors(tensors: Any, fragment: str) -> None:
    refused({**with_table(), "tensors": tensors}, fragment)


# Files, round trip, hash


def documents() -> list[Document]:
    cases = [example(), example(name="n", profiles={}), with_table()]
    cases += [one_step(select) for select, _ in SELECTS]
    cases += [grouping(select) for select, _ in GROUPS]
    cases.append(grouping({"kind": "bipartite", "theta": 0.9}, of="keys"))
    cases[-1]["steps"][0]["action"]["log_size"] = False
    cases[-1]["profiles"] = {"more": {"steps": [{"theta": [0.8, 0.7]}]}}
    cases.append(one_step(TOPK, {"kind": "attn_col", "query": {"segment": 1}, "from": "previous"}))
    cases.append(one_step(TOPK, output={"kind": "mean", "over": "size"}, action="package"))
    cases.append(one_step(TOPK, protect={}, dead_first="passive"))
    profile = {"steps": [{"k": [3, 2]}], "limits": {"max_tokens": 8}}
    cases.append({**one_step(TOPK), "profiles": {"a": profile, "b": {}}})
    return cases


@pytest.mark.parametrize("document", documents())
def test_round_trip(document: Document, tmp_path: Path) -> None:
    policy = parse_policy(document)
    again = parse_policy(json.loads(json.dumps(policy.to_dict())), policy.tensors)
    assert again == policy and hash(again) == hash(policy)
    policy.save(tmp_path)
    for source in (tmp_path, str(tmp_path), tmp_path / "token_policy.json"):
        assert load_policy(source) == policy
    assert find_policy(tmp_path) == policy
    names = {path.name for path in tmp_path.iterdir()}
    tensors = {"token_policy.safetensors"} if policy.tensors else set()
    assert names == {"token_policy.json"} | tensors


def test_load_policy_sources() -> None:
    policy = parse_policy(example())
    assert load_policy(policy) is policy
    assert load_policy(example()) == policy
    with pytest.raises(TypeError, match="not int"):
        load_policy(3)  # type: ignore[arg-type]


def test_missing_files(tmp_path: Path) -> None:
    assert find_policy(tmp_path) is None
    with pytest.raises(PolicyError, match="no such policy file"):
        load_policy(tmp_path)
    with pytest.raises(PolicyError, match="no such policy file"):
        load_policy(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("calibratd", 'did you mean "calibrated"?'),
        ("ltp", 'ltp is a preset: --preset ltp, or in Python tokprune_rt.policy.preset("ltp"'),
        (
            "fast",
            "allowed: auto, off, calibrated, a file, or a model folder with a token_policy.json",
        ),
    ],
)
def test_names_that_are_no_policies(name: str, meant: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy(name)
    assert str(caught.value).startswith(f"{name}: no such policy file; ")
    assert meant in str(caught.value)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "not valid JSON"),
        (b'{"format": "token-policy",', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "an object"),
        (b'{"layers": NaN}', "NaN"),
        (b'{"layers": -Infinity}', "-Infinity"),
        (b'{"layers": 1, "layers": 2}', 'the key "layers" twice'),
        (b'{"tensors": {}}', "$.tensors"),
        (b'{"version": 7}', "$.version: found 7"),
    ],
)
def test_damaged_json(content: bytes, fragment: str, tmp_path: Path) -> None:
    path = tmp_path / "token_policy.json"
    path.write_bytes(content)
    with pytest.raises(PolicyError) as caught:
        load_policy(tmp_path)
    assert fragment in str(caught.value)
    assert str(path) in str(caught.value) or "$" in fragment


def test_damaged_tensors(tmp_path: Path) -> None:
    parse_policy(with_table()).save(tmp_path)
    path = tmp_path / "token_policy.safetensors"
    whole = path.read_bytes()
    for bad in (b"", whole[:20], whole[:-4], b"\xff" * 8 + whole[8:]):
        path.write_bytes(bad)
        with pytest.raises(PolicyError, match="safetensors"):
            load_policy(tmp_path)
    save_file({"idf": np.ones(100, np.float16)}, path)
    with pytest.raises(PolicyError, match="dtype F16; allowed: F32"):
        load_policy(tmp_path)
    save_file({"idf": np.ones(100, np.float32), "x": np.ones(1, np.float32)}, path)
    with pytest.raises(PolicyError, match='tensor "x"'):
        load_policy(tmp_path)
    path.unlink()
    with pytest.raises(PolicyError, match=r"\$\.scores\.imp\.tensor"):
        load_policy(tmp_path)


def test_tensors_beside_another_file_name(tmp_path: Path) -> None:
    parse_policy(with_table()).save(tmp_path)
    for suffix in ("json", "safetensors"):
        (tmp_path / f"token_policy.{suffix}").rename(tmp_path / f"model.{suffix}")
    assert load_policy(tmp_path / "model.json").tensors.keys() == {"idf"}
    plain = parse_policy(example())
    (tmp_path / "model.json").write_text(json.dumps(plain.to_dict()))
    assert load_policy(tmp_path / "model.json") == plain


def test_saving_replaces_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = parse_policy(with_table())
    policy.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def failing(source: object, target: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="disk full"):
            parse_policy(example()).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    parse_policy(example()).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["token_policy.json"]


def test_saving_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        parse_policy(example()).save(tmp_path / "missing")


def test_hash_ignores_spelling_and_provenance() -> None:
    plain = example(profiles={})
    spelled = copy.deepcopy(plain)
    spelled["provenance"] = {"other": 1}
    spelled["protect"].update(last=False)
    spelled["scores"]["imp"].update(heads="mean", query="alive", diagonal=True)
    spelled["steps"][0]["select"].update(floor=[0, 0, 0], min_tokens=0)
    spelled["steps"][0]["select"] = dict(reversed(spelled["steps"][0]["select"].items()))
    assert policy_hash(parse_policy(plain)) == policy_hash(parse_policy(spelled))
    assert parse_policy(plain) != parse_policy(spelled)
    one = one_step({"kind": "topk", "k": 4})
    many = one_step({"kind": "topk", "k": [4, 4]})
    assert parse_policy(one) == parse_policy(many)
    one = grouping({"kind": "energy_pairs", "ratio": 0.9, "margin": 0.5})
    many = grouping({"kind": "energy_pairs", "ratio": 0.9, "margin": 0.5, "alpha": [1, 1]})
    many["steps"][0]["action"]["log_size"] = True
    many["scores"]["imp"]["of"] = "hidden"
    assert policy_hash(parse_policy(one)) == policy_hash(parse_policy(many))
    many["steps"][0]["action"]["log_size"] = False
    assert policy_hash(parse_policy(one)) != policy_hash(parse_policy(many))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: put(d, ("layers",), 7),
        lambda d: put(d, ("protect", "token_ids"), [8]),
        lambda d: put(d, ("limits", "skip_below"), 17),
        lambda d: put(d, ("steps", 0, "select", "theta", 0), 0.31),
        lambda d: put(d, ("profiles", "fast", "theta_scale"), 1.6),
    ],
)
def test_hash_sees_every_change(change: Callable[[Document], Document]) -> None:
    digest = policy_hash(parse_policy(example()))
    assert len(digest) == 64
    assert policy_hash(parse_policy(change(example()))) != digest


def test_hash_sees_tensors() -> None:
    document = with_table()
    digest = policy_hash(parse_policy(document))
    document["tensors"]["idf"] = document["tensors"]["idf"].copy()
    assert policy_hash(parse_policy(document)) == digest
    document["tensors"]["idf"][3] += 1
    assert policy_hash(parse_policy(document)) != digest
    assert parse_policy(document) != parse_policy(with_table())


def test_documents_are_not_shared_or_changed() -> None:
    document = example()
    before = copy.deepcopy(document)
    policy = parse_policy(document)
    assert document == before
    document["provenance"]["method"] = "changed"
    assert policy.provenance["method"] == "ltp"
    assert isinstance(policy, Policy) and policy != "something else"


def test_import_needs_no_extension_and_no_framework() -> None:
    code = (
        "import sys, tokprune_rt.policy;"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'tokprune_rt._core'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
