"""Damaged, contradictory and unsupported model folders: each a specific error, never a crash."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokprune_rt
from tokprune_rt import ModelFormatError, PolicyError, TokpruneError, UnsupportedModelError


@pytest.fixture
def folder(tiny: Any, tmp_path: Path) -> Path:
    """A copy of the tiny BERT to damage."""
    return Path(shutil.copytree(tiny("bert"), tmp_path / "model"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            raw.pop(key, None)
        else:
            raw[key] = value
    path.write_text(json.dumps(raw))


def change_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {key: value.copy() for key, value in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


WORD = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.1.attention.self.query.weight"


def test_errors_are_both_ours_and_value_errors() -> None:
    for error in (ModelFormatError, PolicyError, UnsupportedModelError):
        assert issubclass(error, TokpruneError) and issubclass(error, ValueError)
    assert issubclass(UnsupportedModelError, ModelFormatError)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors[QUERY][3, 5] = value

    change_weights(folder, spoil)
    with pytest.raises(ModelFormatError, match=rf"{QUERY} holds -?(nan|inf) at \[3, 5\]"):
        tokprune_rt.load(folder)


def test_opposite_infinities(folder: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors[QUERY][3, 5], tensors[QUERY][3, 6] = np.inf, -np.inf

    change_weights(folder, spoil)
    with pytest.raises(ModelFormatError, match="2 values are not finite"):
        tokprune_rt.load(folder)


def test_huge_finite_weights_are_accepted(folder: Path) -> None:
    from tokprune_rt.loader import load_model

    change_weights(folder, lambda tensors: tensors[QUERY].fill(3e38))
    assert load_model(folder).weights["layers.1.q.weight"].max() == np.float32(3e38)


@pytest.mark.parametrize("name", [WORD, QUERY, "encoder.layer.2.output.LayerNorm.bias"])
def test_missing_tensor(folder: Path, name: str) -> None:
    change_weights(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelFormatError, match=rf"model\.safetensors: tensor \S*{name} is missing"):
        tokprune_rt.load(folder)


def test_wrong_shape(folder: Path) -> None:
    change_weights(folder, lambda t: t.__setitem__(QUERY, np.zeros((64, 32), np.float32)))
    message = rf"{QUERY} has shape \(64, 32\), expected \(64, 64\)"
    with pytest.raises(ModelFormatError, match=message):
        tokprune_rt.load(folder)


def test_wrong_type(folder: Path) -> None:
    change_weights(folder, lambda t: t.__setitem__(QUERY, np.zeros((64, 64), np.int8)))
    with pytest.raises(ModelFormatError, match=f"{QUERY} has type I8, expected one of F32"):
        tokprune_rt.load(folder)


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _cut_header(data: bytes) -> bytes:
    return data[:100]


def _huge_header(data: bytes) -> bytes:
    return struct.pack("<Q", 2**62) + data[8:]


def _appended(data: bytes) -> bytes:
    return data + b"\0" * 64


def _patched(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _lying_shape(data: bytes) -> bytes:
    return _patched(data, lambda header: header[QUERY].update(shape=[640, 64]))


def _lying_offsets(data: bytes) -> bytes:
    return _patched(data, lambda header: header[QUERY].update(data_offsets=[0, 2**40]))


def _lying_type(data: bytes) -> bytes:
    return _patched(data, lambda header: header[QUERY].update(dtype="F64"))


def _no_json(data: bytes) -> bytes:
    return data[:8] + b"x" * (len(data) - 8)


def _empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        _cut_header,
        _huge_header,
        _appended,
        _lying_shape,
        _lying_offsets,
        _lying_type,
        _no_json,
        _empty,
    ],
)
def test_damaged_safetensors(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelFormatError, match=r"model\.safetensors: not a valid safetensors file"):
        tokprune_rt.load(folder)


def test_pickled_weights_only(folder: Path) -> None:
    import subprocess
    import sys

    import torch
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"pytorch_model.bin") as caught:
        tokprune_rt.load(folder)
    command = str(caught.value).partition('Convert them once with: python -c "')[2].rstrip('"')
    subprocess.run([sys.executable, "-c", command], check=True)
    tokprune_rt.load(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"no model\.safetensors and no"):
        tokprune_rt.load(folder)
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    with pytest.raises(ModelFormatError, match="save_pretrained"):
        tokprune_rt.load(folder)


def test_head_missing(tiny: Any, folder: Path) -> None:
    change_config(folder, architectures=["BertForSequenceClassification"])
    with pytest.raises(ModelFormatError, match=r"classifier\.weight is missing"):
        tokprune_rt.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2Model"], "model_type": "gpt2"}, "'GPT2Model'.*BertModel"),
        ({"architectures": ["BertForMultipleChoice"]}, "'BertForMultipleChoice'"),
        ({"architectures": ["RobertaModel"]}, "'RobertaModel'.*'bert'"),
        ({"architectures": ..., "model_type": "deberta"}, "'deberta'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"quantization_config": {"bits": 8}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"hidden_act": "mish"}, "activation 'mish'.*gelu"),
    ],
)
def test_unsupported_models(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(UnsupportedModelError, match=message):
        tokprune_rt.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size must be an integer"),
        ({"hidden_size": True}, "hidden_size must be an integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer of at least 1"),
        ({"num_attention_heads": 3}, "not a multiple of the 3"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps"),
        ({"layer_norm_eps": 0}, r"config\.json: layer_norm_eps must be above 0 .* found 0$"),
        ({"layer_norm_eps": 1e-50}, "layer_norm_eps must be above 0 as a float32.* found 1e-50"),
        ({"layer_norm_eps": 1}, "layer_norm_eps must be .* below 1, found 1"),
        ({"architectures": "BertModel"}, "architectures must be a list"),
        ({"vocab_size": 7}, r"word_embeddings\.weight has shape .*expected \(7, 64\)"),
        ({"max_position_embeddings": 512}, r"position_embeddings\.weight has shape \(64, 64\)"),
        ({"problem_type": "other"}, "problem_type 'other'"),
        (
            {"architectures": ["BertForTokenClassification"], "id2label": {"1": "x"}},
            "id2label must number",
        ),
        (
            {"architectures": ["BertForQuestionAnswering"]},
            "question-answering head has 2 outputs",
        ),
    ],
)
def test_bad_configurations(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(ModelFormatError, match=message):
        tokprune_rt.load(folder)


def test_unreadable_json(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text("{")
    with pytest.raises(ModelFormatError, match=r"config\.json: not valid JSON"):
        tokprune_rt.load(folder)
    path.write_text("[]")
    with pytest.raises(ModelFormatError, match="expected a JSON object, found list"):
        tokprune_rt.load(folder)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ModelFormatError, match=r"config\.json: cannot be read"):
        tokprune_rt.load(folder)
    path.write_text("[" * 100_000)
    with pytest.raises(ModelFormatError, match=r"config\.json: not valid JSON"):
        tokprune_rt.load(folder)
    path.unlink()
    with pytest.raises(ModelFormatError, match=r"config\.json: the file is missing"):
        tokprune_rt.load(folder)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([], "non-empty list"),
        ([{"path": ""}], "needs a type"),
        ([{"type": "x.Transformer", "path": "../.."}], "leaves the model folder"),
        ([{"type": "x.Transformer", "path": "/etc"}], "leaves the model folder"),
        ([{"type": "x.Pooling", "path": ""}], "a Transformer must come first"),
        ([{"type": "x.Transformer", "path": ""}, {"type": "x.LSTM", "path": ""}], "LSTM"),
        (
            [{"type": "x.Transformer", "path": ""}, {"type": "x.Normalize", "path": ""}],
            "Normalize",
        ),
        ([{"type": "x.Transformer", "path": ""}] * 2, "module 1 is a Transformer"),
    ],
)
def test_bad_modules(folder: Path, modules: list[Any], message: str) -> None:
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelFormatError, match=message):
        tokprune_rt.load(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sentence_bert_config.json", {"max_seq_length": -1}, "max_seq_length"),
        ("sentence_bert_config.json", {"max_seq_length": 2}, "no room for text"),
        ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "prompts must map"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "'q' is none of"),
    ],
)
def test_bad_sentence_files(folder: Path, name: str, content: Any, message: str) -> None:
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ModelFormatError, match=message):
        tokprune_rt.load(folder)


def test_policies_that_do_not_fit(tiny: Any, folder: Path) -> None:
    policy: dict[str, Any] = {"format": "token-policy", "version": 1, "layers": 3}
    with pytest.raises(PolicyError, match="layers"):
        tokprune_rt.load(folder, policy=policy | {"layers": 12})
    with pytest.raises(PolicyError, match="colour"):
        tokprune_rt.load(folder, policy=policy | {"colour": 1})
    (folder / "token_policy.json").write_text("{")
    with pytest.raises(PolicyError, match=r"token_policy\.json"):
        tokprune_rt.load(folder)
    assert tokprune_rt.load(folder, policy="off").policy is None
    with pytest.raises(PolicyError, match="no such policy file"):
        tokprune_rt.load(folder, policy=folder / "absent.json")
    with pytest.raises(TypeError, match="int"):
        tokprune_rt.load(folder, policy=3)  # type: ignore[arg-type]
