"""`TokpruneTransformer` inside sentence-transformers' own models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from same import same

import tokprune_rt
from tokprune_rt.policy import preset

sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6.0")

TEXTS = [
    "Ada Lovelace wrote the first program in London.",
    "a",
    "The weather is good, the film was bad!",
    "Alan Turing worked in Manchester and it's a test",
]
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
POLICY = preset("quantile", layers=3, locations=[0, 1], q=0.4)


def build(folder: Path, mode: Any = "mean", **options: Any) -> Any:
    from sentence_transformers.sentence_transformer.modules import Pooling

    from tokprune_rt.integrations.sentence_module import TokpruneTransformer

    module = TokpruneTransformer(folder, **options)
    modules = [module, Pooling(module.get_embedding_dimension(), mode)]
    return sentence_transformers.SentenceTransformer(modules=modules, device="cpu")


def theirs_of(folder: Path, mode: Any = "mean") -> Any:
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    modules = [Transformer(str(folder)), Pooling(64, mode)]
    return sentence_transformers.SentenceTransformer(modules=modules, device="cpu")


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet"])
def test_as_their_transformer(tiny: Any, family: str) -> None:
    folder = tiny(family)
    ours, theirs = build(folder), theirs_of(folder)
    same(ours.encode(TEXTS), theirs.encode(TEXTS))
    same(ours.encode(TEXTS[0], prompt="who wrote "), theirs.encode(TEXTS[0], prompt="who wrote "))
    tokens = {"output_value": "token_embeddings"}
    same(ours.encode(TEXTS, **tokens), theirs.encode(TEXTS, **tokens))
    assert ours.get_embedding_dimension() == theirs.get_embedding_dimension()
    assert ours.max_seq_length == theirs.max_seq_length
    assert ours.tokenizer.encode(TEXTS[0]) == theirs.tokenizer.encode(TEXTS[0])


@pytest.mark.parametrize("mode", MODES)
def test_pruned_tokens_are_not_pooled(tiny: Any, tmp_path: Path, mode: str) -> None:
    """Their pooling of what is left gives what this package's own pooling gives."""
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    modules = [Transformer(str(tiny("bert"))), Pooling(64, mode)]
    sentence_transformers.SentenceTransformer(modules=modules, device="cpu").save(
        str(tmp_path), create_model_card=False
    )
    ours = build(tiny("bert"), mode, policy=POLICY)
    direct = tokprune_rt.load(tmp_path, policy=POLICY)
    same(ours.encode(TEXTS), direct.encode(TEXTS))
    assert ours[0].policy_hash == direct.policy_hash
    # The first and the last token are never pruned, but lose what the others had to say.
    assert np.abs(ours.encode(TEXTS) - direct.encode(TEXTS, profile="off")).max() > 1e-3


@pytest.mark.parametrize("policy", ["off", POLICY])
def test_saved_and_loaded(tiny: Any, tmp_path: Path, policy: Any) -> None:
    ours = build(tiny("bert"), policy=policy, max_seq_length=9)
    expected = ours.encode(TEXTS)
    ours.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    again = sentence_transformers.SentenceTransformer(
        str(tmp_path / "saved"), device="cpu", trust_remote_code=True
    )
    assert type(again[0]).__name__ == "TokpruneTransformer"
    np.testing.assert_array_equal(again.encode(TEXTS), expected)
    assert again.max_seq_length == 9
    assert again[0].policy_hash == ours[0].policy_hash
    # The folder is one of this package's, too.
    same(tokprune_rt.load(tmp_path / "saved").encode(TEXTS), expected)


def test_processes(tiny: Any) -> None:
    """A pool of theirs pickles the module."""
    import pickle

    ours = build(tiny("bert"), policy=POLICY, max_seq_length=9)
    copy = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(copy.encode(TEXTS), ours.encode(TEXTS))
    assert copy.max_seq_length == 9
