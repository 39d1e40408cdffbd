"""How a training step is computed: in parts, with the teacher's answers made once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gate_documents import variants
from hypothesis import given
from hypothesis import strategies as st
from test_train import run_of
from test_train_masked import padded
from test_train_tokens import token_run
from tiny_models import FAMILIES

import tokprune_rt
from tokprune_rt.errors import PolicyError
from tokprune_rt.policy import parse_policy, preset
from tokprune_rt.tokenizer import Tokens
from tokprune_rt.train import MaskedEncoder, finetune, loop, memory
from tokprune_rt.train.budget import Widths
from tokprune_rt.train.data import parts_of
from tokprune_rt.train.gates import Gates
from tokprune_rt.train.hard import PolicyChooser
from tokprune_rt.train.leaving import FROM_FIRST, Leaving, leaving_of
from tokprune_rt.train.masked import logits_of, masked_softmax
from tokprune_rt.train.merging import executing
from tokprune_rt.train.teacher import Teacher, _Watching, attention_of_all, logits_of_all
from tokprune_rt.train.top import TopMasks


@given(st.lists(st.integers(1, 600), min_size=1, max_size=64), st.integers(1, 400_000))
def test_parts_have_everything_once_and_fit(lengths: list[int], most: int) -> None:
    batch = list(range(len(lengths)))
    parts = parts_of(batch, lengths, most)
    assert sorted(place for part in parts for place in part) == batch
    for part in parts:
        longest = max(lengths[place] for place in part)
        assert len(part) == 1 or len(part) * longest**2 <= most


def test_a_step_in_parts_is_the_step(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without dropout, the mean of the parts' losses gives the gradient of the batch."""
    torch.set_num_threads(1)
    # Adam makes as much of a gradient that is only rounding as of any other.
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, fused: torch.optim.SGD(groups))
    source = tiny("bert", hidden_dropout_prob=0.0)
    found = []
    for name, most in (("whole", 10**9), ("parts", 3000)):
        monkeypatch.setattr(loop, "_CACHED_LOGITS", most)
        finetune(run_of(source, tmp_path / name), epochs=1, rate=1e-2)
        found.append(transformers.AutoModel.from_pretrained(tmp_path / name).state_dict())
    whole, parts = found
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=2e-5, rtol=0, msg=name)


CLASSES = {
    "sequence-classification": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
}
ROWS = [[2, 9, 11, 7, 3], [2, 8, 3], [2, 12, 13, 14, 15, 16, 17, 3], [2, 30, 31, 3]]


@pytest.mark.parametrize("task", CLASSES)
def test_a_teacher_answers_as_if_asked_each_time(tiny: Any, tmp_path: Path, task: str) -> None:
    """In the student's form, for any batch, made once and kept."""
    folder = tiny("bert", task)
    encoder = MaskedEncoder(CLASSES[task].from_pretrained(folder))
    heard: list[str] = []

    def inputs(places: Sequence[int]) -> dict[str, torch.Tensor]:
        return padded([ROWS[place] for place in places])

    def ids(row: list[int]) -> Tokens:
        nothing = np.zeros(len(row), np.int32)
        return Tokens(np.array(row, np.int32), nothing, nothing)

    def teacher() -> Teacher:
        ask = {
            "logits": lambda: logits_of_all(folder, [ids(row) for row in ROWS]),
            "scores": lambda: attention_of_all(encoder, inputs, [len(row) for row in ROWS]),
        }
        return Teacher(ask, lambda name: tmp_path / "run" / name, heard.append)

    first = teacher()
    places = [3, 0, 2]
    batch = inputs(places)
    encoder.model.eval()
    with torch.no_grad():
        output, run = encoder.run(batch)
        student = logits_of(output, run.real)
    run.places = places
    for one in (first, first, teacher()):
        torch.testing.assert_close(one.logits(run, student), student, atol=1e-5, rtol=0)
        scores = one.scores(run)
        assert scores.shape == run.real.shape
        assert bool((scores[~run.real] == 0).all()) and bool((scores[run.real] > 0).all())
        # What all keys receive is what all queries give away.
        total = scores.sum(dim=1) / scores.sum()
        torch.testing.assert_close(total, run.lengths / run.lengths.sum(), atol=1e-5, rtol=0)
    assert heard == [f"asking the dense model for {what}" for what in ("logits", "scores")]


@pytest.mark.parametrize("chooser", [None, _Watching()], ids=["fused", "watched"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_model_s_own(tiny: Any, family: str, chooser: Any) -> None:
    """Of every weight, MPNet's position bias among them, without dropout."""
    model = CLASSES["sequence-classification"].from_pretrained(
        tiny(family, "sequence-classification"), attn_implementation="eager"
    )
    model.eval()
    inputs = padded(ROWS, model.config.pad_token_id)

    def gradients(output: Any) -> dict[str, torch.Tensor]:
        output.logits.square().sum().backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    expected = gradients(model(**inputs))
    encoder = MaskedEncoder(model)
    with encoder.choosing(chooser):
        found = gradients(encoder.run(inputs)[0])
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        apart = float((found[name] - wanted).norm())
        assert apart <= 1e-3 * float(wanted.norm()) + 1e-5, name


def _policies() -> dict[str, Any]:
    common: dict[str, Any] = {"layers": 3, "protect_token_ids": [3]}
    bits = [[1, 0, 1, 0], [1, 1, 0, 0]]
    return {
        "ltp": preset("ltp", final_threshold=1.0, **common),
        "top": preset("top", token_bits=bits, gate_bits=[1, 1], **common),
        "topk": preset("topk", keep_rate=0.6, locations=[0, 1, 2], **common),
        **{name: variants(64)[name] for name in ("embed", "pre", "post", "softmax", "predicted")},
    }


@pytest.mark.parametrize("kind", _policies())
@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_rows_give_the_gradients_of_masks(tiny: Any, family: str, kind: str) -> None:
    """Without dropout, of every weight; and the rows that left are not computed."""
    source = tiny(family, "sequence-classification")
    model = CLASSES["sequence-classification"].from_pretrained(source)
    model.eval()
    policy = parse_policy(_policies()[kind])
    inputs = padded(ROWS, model.config.pad_token_id)

    def gradients(encoder: Any, chooser: Any) -> tuple[dict[str, torch.Tensor], list[int]]:
        with encoder.choosing(chooser):
            output, run = encoder.run(inputs)
        output.logits.square().sum().backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found, [int(alive.sum()) for alive in run.kept]

    expected, kept = gradients(MaskedEncoder(model), PolicyChooser(policy))
    encoder, chooser = executing(model, policy, FROM_FIRST)
    widths: list[int] = []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda _, __, out: widths.append(_rows_of_layer(out)))
    found, kept_too = gradients(encoder, chooser)
    assert kept_too == kept and kept[-1] < int(inputs["attention_mask"].sum())
    assert widths[-1] < inputs["input_ids"].shape[1]
    assert found.keys() == expected.keys()
    # Where a single key is left its gradient is 0, but for rounding.
    rounding = 1e-6 * max(float(wanted.norm()) for wanted in expected.values())
    for name, wanted in expected.items():
        apart = float((found[name] - wanted).norm())
        assert apart <= 1e-3 * float(wanted.norm()) + max(1e-5, rounding), (name, rounding)


def _rows_of_layer(output: Any) -> int:
    return (output if isinstance(output, torch.Tensor) else output[0]).shape[1]


@pytest.mark.parametrize("kind", ["tags", "answers"])
def test_heads_that_read_every_token_learn_under_policies_that_restore(
    tiny: Any, tmp_path: Path, kind: str
) -> None:
    """Their rows stay, by masks; the runtime would refuse a policy that only drops."""
    half = {"layers": 3, "keep_rate": 0.5, "locations": [1, 2]}
    run = token_run(kind, tiny("bert"), tmp_path / "out", [])
    with pytest.raises(PolicyError, match='allowed: "restore" in every step'):
        finetune(run, epochs=1, policy=preset("topk", **half))
    result = finetune(run, epochs=1, policy=preset("topk", **half, action="restore"))
    assert 0 <= result.scores["pruned"] <= 100
    assert tokprune_rt.load(tmp_path / "out").policy is not None


@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_and_its_gradient(weighted: bool) -> None:
    """Against the same in plain operations, in float64; dead keys get nothing."""
    generator = torch.manual_seed(0)
    logits = torch.randn(2, 3, 7, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    alive = torch.rand(2, 7, generator=generator) > 0.4
    alive[:, 0] = True
    weight = alive.double().requires_grad_()
    given = torch.randn(logits.shape, dtype=torch.float64, generator=generator)

    def plain() -> torch.Tensor:
        dead = ~alive[:, None, None, :]
        if not weighted:
            return torch.softmax(logits.masked_fill(dead, -math.inf), dim=-1)
        top = logits.detach().masked_fill(dead, -math.inf).amax(dim=-1, keepdim=True)
        parts = (logits - top).clamp(max=4.0).exp() * weight[:, None, None, :]
        return parts / parts.sum(dim=-1, keepdim=True)

    inputs = (logits, weight) if weighted else (logits,)
    expected = plain()
    found = masked_softmax(logits.clone(), alive, weight if weighted else None)
    torch.testing.assert_close(found, expected)
    assert bool((found.transpose(1, 3)[~alive] == 0).all())
    wanted = torch.autograd.grad((expected * given).sum(), inputs)
    gradients = torch.autograd.grad((found * given).sum(), inputs)
    torch.testing.assert_close(gradients, wanted)


def test_a_gate_that_is_wide_open_can_close(tiny: Any) -> None:
    """A logit of 50 still has a gradient that an optimizer moves by."""
    source = tiny("bert", "sequence-classification")
    encoder = MaskedEncoder(CLASSES["sequence-classification"].from_pretrained(source))
    config = encoder.model.config
    widths = Widths(config.num_hidden_layers, config.hidden_size, config.intermediate_size)
    gates = Gates(widths, "transkimmer", [3])
    for output in gates.output:
        torch.nn.init.constant_(output.bias, 0.0)
        output.bias.data[-1] = 50.0
    with encoder.choosing(gates.chooser()):
        _, run = encoder.run(padded(ROWS))
    assert all(torch.equal(alive, run.real) for alive in run.kept)
    gates.expected_macs(run).backward()
    for output in gates.output:
        assert float(output.bias.grad[-1]) > 1e-6


@pytest.mark.parametrize("leaving", [FROM_FIRST, leaving_of("question-answering")])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.7])
def test_bits_begin_at_the_budget(leaving: Leaving, target: float) -> None:
    """All layers drop but the first, if that will do; behind the last attention a first token is
    all that is read."""
    lengths, pinned = torch.tensor([40, 100, 160]), torch.tensor([3, 2, 3])
    masks = TopMasks(Widths(6, 384, 1536), 20, (), leaving, target, (lengths, pinned))
    (step,) = masks.policy().to_dict()["steps"]
    bits = torch.tensor(step["select"]["bits"])
    left = [lengths.float()] * step["layers"][0]
    free = (lengths - pinned).float()
    for row in bits:
        free = free * row.float().mean()
        left.append(pinned + free)
    left += [left[-1]] * (6 - len(left))
    assert float(masks.macs(lengths, left)) == pytest.approx(target, abs=0.03)
    first = 0 if leaving.restores and target == 0.3 else 1
    assert step["layers"] == list(range(first, 5 if leaving.restores else 6))
    assert leaving.restores or not bits[-1].any()


def test_free_memory_goes_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at every step, and not at all where the C library cannot."""
    clock = [0.0]
    monkeypatch.setattr(memory.time, "monotonic", lambda: clock[0])
    trimmed: list[int] = []
    monkeypatch.setattr(
        memory.ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=trimmed.append)
    )
    trimming = memory.Trimming()
    for _ in range(10):
        clock[0] += 1.0
        trimming.step()
    assert trimmed == [0, 0]
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace())
    other = memory.Trimming()
    clock[0] += 10.0
    other.step()
    assert trimmed == [0, 0]
