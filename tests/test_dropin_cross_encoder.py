"""The same calls on sentence-transformers' `CrossEncoder` and on ours."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from same import same, same_outcome

import tokprune_rt
from tokprune_rt.policy import preset

sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6.0")

QUERY = "who wrote the first program?"
DOCUMENTS = [
    "Alan Turing worked in Manchester and it's a test " * 3,
    "a",
    "Ada Lovelace wrote the first program in London.",
    "The weather is good, the film was bad!",
]
PAIRS = [(QUERY, document) for document in DOCUMENTS]

Call = Callable[[Any], Any]


def one_label(tiny: Any) -> Path:
    folder: Path = tiny(
        "bert", "sequence-classification", id2label={0: "LABEL_0"}, label2id={"LABEL_0": 0}
    )
    return folder


@pytest.fixture(scope="module", params=["one label", "several labels"])
def both(request: pytest.FixtureRequest, tiny: Any) -> tuple[Any, Any]:
    """Ours and theirs."""
    one = request.param == "one label"
    folder = one_label(tiny) if one else tiny("bert", "sequence-classification")
    theirs = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    return tokprune_rt.CrossEncoder(folder, device="cpu"), theirs


def identity(x: Any) -> Any:
    return x


def double(x: Any) -> Any:
    return x * 2


CALLS: dict[str, Call] = {
    "pairs": lambda m: m.predict(PAIRS),
    "lists": lambda m: m.predict([list(pair) for pair in PAIRS]),
    "array": lambda m: m.predict(np.array(PAIRS)),
    "small batches keep the order": lambda m: m.predict(PAIRS, batch_size=1),
    "single pair": lambda m: m.predict(PAIRS[0]),
    "single list": lambda m: m.predict(list(PAIRS[0])),
    "single array": lambda m: m.predict(np.array(PAIRS[0])),
    "text": lambda m: m.predict(DOCUMENTS[0]),
    "inputs": lambda m: m.predict(inputs=PAIRS),
    "old names": lambda m: m.predict(sentences=PAIRS, activation_fct=identity, num_workers=0),
    "nothing": lambda m: m.predict([]),
    "nothing as tensor": lambda m: m.predict([], convert_to_tensor=True),
    "nothing as list": lambda m: m.predict([], convert_to_numpy=False),
    "softmax": lambda m: m.predict(PAIRS, apply_softmax=True),
    "activation": lambda m: m.predict(PAIRS, activation_fn=double),
    "tensor": lambda m: m.predict(PAIRS, convert_to_tensor=True),
    "tensors": lambda m: m.predict(PAIRS, convert_to_numpy=False),
    "tensor of one": lambda m: m.predict(PAIRS[0], convert_to_tensor=True),
    "prompt": lambda m: m.predict(PAIRS, prompt="about: "),
    "unknown prompt": lambda m: m.predict(PAIRS, prompt_name="absent"),
    "rank": lambda m: m.rank(QUERY, DOCUMENTS),
    "rank, texts": lambda m: m.rank(QUERY, DOCUMENTS, top_k=2, return_documents=True),
    "rank, activation": lambda m: m.rank(QUERY, DOCUMENTS, activation_fn=identity),
    "rank nothing": lambda m: m.rank(QUERY, []),
    "batch_size 0": lambda m: m.predict(PAIRS, batch_size=0),
    "three texts": lambda m: m.predict([["a", "b", "c"]]),
    "number": lambda m: m.predict([("a", 1)]),
    "numbers": lambda m: m.predict([1, 2]),
    "None": lambda m: m.predict(None),
    "labels": lambda m: m.num_labels,
    "length": lambda m: m.max_seq_length,
    "activation_fn": lambda m: type(m.activation_fn).__name__,
    "prompts": lambda m: m.prompts,
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(both: tuple[Any, Any], name: str) -> None:
    ours, theirs = both
    same_outcome(lambda: CALLS[name](ours), lambda: CALLS[name](theirs))


@pytest.mark.parametrize("activation", ["Identity", "Sigmoid", "legacy", "set", "saved"])
def test_activation(tiny: Any, tmp_path: Path, activation: str) -> None:
    """What config.json says, what the constructor says, and what a saved model says."""
    import torch

    folder = shutil.copytree(one_label(tiny), tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text())
    options: dict[str, Any] = {}
    if activation == "legacy":
        raw["sbert_ce_default_activation_function"] = "torch.nn.modules.linear.Identity"
    elif activation in ("set", "saved"):
        options["activation_fn"] = torch.nn.Tanh()
    else:
        raw["sentence_transformers"] = {"activation_fn": f"torch.nn.{activation}"}
    (folder / "config.json").write_text(json.dumps(raw))
    if activation == "saved":
        tokprune_rt.CrossEncoder(folder, **options).save_pretrained(tmp_path / "saved")
        folder, options = tmp_path / "saved", {}
    ours = tokprune_rt.CrossEncoder(folder, **options)
    theirs = sentence_transformers.CrossEncoder(str(folder), device="cpu", **options)
    assert type(ours.activation_fn) is type(theirs.activation_fn)
    same(ours.predict(PAIRS), theirs.predict(PAIRS))
    same(ours.rank(QUERY, DOCUMENTS), theirs.rank(QUERY, DOCUMENTS))
    assert np.ptp(ours.predict(PAIRS)) > 0


def test_length(tiny: Any, tmp_path: Path) -> None:
    folder = one_label(tiny)
    ours = tokprune_rt.CrossEncoder(folder, max_length=12)
    theirs = sentence_transformers.CrossEncoder(str(folder), max_length=12, device="cpu")
    same(ours.predict(PAIRS), theirs.predict(PAIRS))
    ours.save_pretrained(tmp_path / "saved")
    again = sentence_transformers.CrossEncoder(str(tmp_path / "saved"), device="cpu")
    assert again.max_seq_length == 12
    same(ours.predict(PAIRS), again.predict(PAIRS))
    assert np.abs(ours.predict(PAIRS) - tokprune_rt.CrossEncoder(folder).predict(PAIRS)).max() > 0
    ours.max_length = 20
    theirs.max_seq_length = 20
    same(ours.predict(PAIRS), theirs.predict(PAIRS))


def test_reranking_evaluator(tiny: Any) -> None:
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

    folder = one_label(tiny)
    models = (
        tokprune_rt.CrossEncoder(folder),
        sentence_transformers.CrossEncoder(str(folder), device="cpu"),
    )
    samples = [{"query": QUERY, "positive": [DOCUMENTS[2]], "negative": DOCUMENTS[:2]}]
    evaluator = CrossEncoderRerankingEvaluator(samples, show_progress_bar=False)
    found, expected = (model.evaluate(evaluator) for model in models)
    assert found == pytest.approx(expected)


def test_pruned(tiny: Any) -> None:
    folder = one_label(tiny)
    policy = preset(
        "quantile",
        layers=3,
        locations=[0, 1],
        q=0.4,
        profiles={"fast": {"steps": [{"q": 0.7}]}},
    )
    ours = tokprune_rt.CrossEncoder(folder, policy=policy, profile="fast")
    direct = tokprune_rt.load(folder, policy=policy)
    assert ours.policy_hash == direct.policy_hash != "off"
    expected = {
        profile: [row["score"] for row in direct.predict(PAIRS, profile=profile)]
        for profile in ("fast", "off")
    }
    np.testing.assert_allclose(ours.predict(PAIRS), expected["fast"], atol=1e-6)
    np.testing.assert_allclose(ours.predict(PAIRS, profile="off"), expected["off"], atol=1e-6)
    assert np.abs(np.subtract(expected["fast"], expected["off"])).max() > 1e-3
    copy = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(copy.predict(PAIRS), ours.predict(PAIRS))


def test_refusals(tiny: Any) -> None:
    with pytest.raises(ValueError, match=r"num_labels is 3, .* has 1"):
        tokprune_rt.CrossEncoder(one_label(tiny), num_labels=3)
    with pytest.raises(ValueError, match="CrossEncoder needs a sequence-classification model"):
        tokprune_rt.CrossEncoder(tiny("bert"))
    with pytest.raises(ValueError, match="rank needs a model with one label"):
        tokprune_rt.CrossEncoder(tiny("bert", "sequence-classification")).rank(QUERY, DOCUMENTS)


def test_processes(tiny: Any) -> None:
    ours = tokprune_rt.CrossEncoder(one_label(tiny))
    found = ours.predict(PAIRS * 3, device=["cpu", "cpu"], chunk_size=5)
    np.testing.assert_array_equal(found, ours.predict(PAIRS * 3))
