"""Training with only the word embeddings that occur: the same steps, and no other row changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import BuildModel
from test_train import TRAIN, run_of

from tokprune_rt.loader import resolve
from tokprune_rt.tokenizer import Tokens
from tokprune_rt.train import Examples, finetune
from tokprune_rt.train.data import tokenizer_of
from tokprune_rt.train.folders import new_model, new_task
from tokprune_rt.train.vocabulary import WordRows, words_of

FAMILIES = ("bert", "roberta", "distilbert", "electra", "mpnet")


def model_and_texts(folder: Any) -> tuple[Any, list[Tokens]]:
    source = resolve(folder)
    torch.manual_seed(0)
    model = new_model(source, new_task(TRAIN, False, None)).eval()
    return model, list(tokenizer_of(source).tokenize(TRAIN.texts[:6]))


def inputs_of(model: Any, texts: list[Tokens]) -> dict[str, torch.Tensor]:
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), model.config.pad_token_id)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(text.ids)
    return {"input_ids": ids, "attention_mask": (ids != model.config.pad_token_id).long()}


def stepped(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits before a step of the optimizer without decay, which leaves rows alone."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    logits = model(**inputs).logits
    logits.square().sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return logits.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_are_those_of_the_whole_vocabulary(family: str, tiny: BuildModel) -> None:
    model, texts = model_and_texts(tiny(family))
    other, _ = model_and_texts(tiny(family))
    inputs = inputs_of(model, texts)
    before = model.get_input_embeddings().weight.detach().clone()
    whole = model.get_input_embeddings()
    with words_of(model, texts):
        rows = model.get_input_embeddings()
        assert isinstance(rows, WordRows) and len(rows.weight) < len(before) / 2
        logits = stepped(model, inputs)
        assert not any(parameter is whole.weight for parameter in model.parameters())
    assert torch.equal(logits, stepped(other, inputs))
    assert model.get_input_embeddings() is whole
    for (name, found), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, msg=name)
    used = {int(i) for text in texts for i in text.ids}
    changed = (whole.weight.detach() != before).any(dim=1).nonzero()[:, 0].tolist()
    assert changed and set(changed) <= used - {model.config.pad_token_id}


def test_other_words_are_an_error_and_frozen_embeddings_stay(tiny: BuildModel) -> None:
    model, texts = model_and_texts(tiny("bert"))
    inputs = inputs_of(model, texts)
    with words_of(model, texts[:1]), pytest.raises(IndexError):
        model(**inputs)
    whole = model.get_input_embeddings()
    whole.requires_grad_(False)
    with words_of(model, texts[:1]):
        assert model.get_input_embeddings() is whole


def test_words_that_no_text_has_keep_their_embeddings(tiny: BuildModel, tmp_path: Any) -> None:
    source, out = tiny("bert"), tmp_path / "out"
    dev = Examples(["unbelievably odd 1936 program", *TRAIN.texts[:9]], TRAIN.labels[:10])
    run = run_of(source, out, dev=dev)
    finetune(run, epochs=1)
    tokenizer = tokenizer_of(source)
    read = [*run.train.texts, *run.dev.texts]
    used = {int(i) for text in tokenizer.tokenize(read) for i in text.ids}
    task = new_task(TRAIN, False, None)
    before, after = (
        new_model(resolve(folder), task).get_input_embeddings().weight.detach()
        for folder in (source, out)
    )
    changed = (before != after).any(dim=1).nonzero()[:, 0].tolist()
    assert changed and set(changed) <= used | {0}  # padding decays
