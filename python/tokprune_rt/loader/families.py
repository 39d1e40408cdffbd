"""Where each supported architecture keeps its tensors.

Every family is described by the Hugging Face stem (a tensor name without ``.weight``/``.bias``) of
each canonical tensor, so supporting another architecture of the same shape is one more entry here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokprune_rt.loader.config import EncoderConfig

Task = Literal["features", "sequence-classification", "token-classification", "question-answering"]

WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class Head:
    """A task head. ``{base}`` stands for the encoder's prefix, ``{root}`` for what is outside."""

    kind: Literal["first", "token"]
    out: str
    dense: str = ""
    dense_activation: str = ""


@dataclass(frozen=True)
class Family:
    """One architecture: its names in config.json and in the weight file."""

    model_type: str
    class_prefix: str
    base_prefix: str
    layer: dict[str, str]
    classification: Head
    positions_follow_pad: bool = False
    segments: bool = True
    relative_bias: str = ""
    config_names: dict[str, str] = field(default_factory=dict)

    def head(self, task: Task) -> Head | None:
        """The head that ``task`` needs, or None for plain feature extraction."""
        if task == "sequence-classification":
            return self.classification
        if task == "token-classification":
            return Head("token", "{root}classifier")
        if task == "question-answering":
            return Head("token", "{root}qa_outputs")
        return None


_BERT_LAYER = {
    "q": "encoder.layer.{i}.attention.self.query",
    "k": "encoder.layer.{i}.attention.self.key",
    "v": "encoder.layer.{i}.attention.self.value",
    "o": "encoder.layer.{i}.attention.output.dense",
    "attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "ffn_in": "encoder.layer.{i}.intermediate.dense",
    "ffn_out": "encoder.layer.{i}.output.dense",
    "ffn_norm": "encoder.layer.{i}.output.LayerNorm",
}
_MPNET_LAYER = {
    **_BERT_LAYER,
    "q": "encoder.layer.{i}.attention.attn.q",
    "k": "encoder.layer.{i}.attention.attn.k",
    "v": "encoder.layer.{i}.attention.attn.v",
    "o": "encoder.layer.{i}.attention.attn.o",
    "attention_norm": "encoder.layer.{i}.attention.LayerNorm",
}
_DISTILBERT_LAYER = {
    "q": "transformer.layer.{i}.attention.q_lin",
    "k": "transformer.layer.{i}.attention.k_lin",
    "v": "transformer.layer.{i}.attention.v_lin",
    "o": "transformer.layer.{i}.attention.out_lin",
    "attention_norm": "transformer.layer.{i}.sa_layer_norm",
    "ffn_in": "transformer.layer.{i}.ffn.lin1",
    "ffn_out": "transformer.layer.{i}.ffn.lin2",
    "ffn_norm": "transformer.layer.{i}.output_layer_norm",
}
_ROBERTA_HEAD = Head("first", "{root}classifier.out_proj", "{root}classifier.dense", "tanh")
_DISTILBERT_CONFIG = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}


def _roberta_like(model_type: str, class_prefix: str) -> Family:
    return Family(
        model_type, class_prefix, "roberta.", _BERT_LAYER, _ROBERTA_HEAD, positions_follow_pad=True
    )


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "bert",
            "Bert",
            "bert.",
            _BERT_LAYER,
            Head("first", "{root}classifier", "{base}pooler.dense", "tanh"),
        ),
        _roberta_like("roberta", "Roberta"),
        _roberta_like("xlm-roberta", "XLMRoberta"),
        _roberta_like("camembert", "Camembert"),
        Family(
            "distilbert",
            "DistilBert",
            "distilbert.",
            _DISTILBERT_LAYER,
            Head("first", "{root}classifier", "{root}pre_classifier", "relu"),
            segments=False,
            config_names=_DISTILBERT_CONFIG,
        ),
        Family(
            "electra",
            "Electra",
            "electra.",
            _BERT_LAYER,
            Head("first", "{root}classifier.out_proj", "{root}classifier.dense", "gelu"),
        ),
        Family(
            "mpnet",
            "MPNet",
            "mpnet.",
            _MPNET_LAYER,
            _ROBERTA_HEAD,
            positions_follow_pad=True,
            segments=False,
            relative_bias="encoder.relative_attention_bias.weight",
        ),
    )
}

TASK_SUFFIXES: dict[str, Task] = {
    "Model": "features",
    "ForMaskedLM": "features",
    "ForPreTraining": "features",
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}


def supported_architectures() -> list[str]:
    """Names of every class that a config.json may give in ``architectures``."""
    return [
        family.class_prefix + suffix for family in FAMILIES.values() for suffix in TASK_SUFFIXES
    ]


def tensor_names(config: EncoderConfig, base: str, root: str) -> dict[str, str]:
    """Map every canonical tensor that ``config`` needs to its name in the weight file.

    ``base`` and ``root`` are the prefixes found in the file, for example ``"bert."`` and ``""``.
    """
    family = config.family
    names = {
        "embeddings.word": base + WORD_EMBEDDINGS,
        "embeddings.position": base + "embeddings.position_embeddings.weight",
    }
    if config.type_vocab_size:
        names["embeddings.token_type"] = base + "embeddings.token_type_embeddings.weight"

    def linear(canonical: str, stem: str) -> None:
        for part in ("weight", "bias"):
            names[f"{canonical}.{part}"] = f"{stem}.{part}"

    linear("embeddings.norm", base + "embeddings.LayerNorm")
    if config.embedding_size != config.hidden:
        linear("embeddings.project", base + "embeddings_project")
    for i in range(config.layers):
        for canonical, stem in family.layer.items():
            linear(f"layers.{i}.{canonical}", base + stem.format(i=i))
    if family.relative_bias:
        names["relative_bias"] = base + family.relative_bias
    head = family.head(config.task)
    if head is not None:
        if head.dense:
            linear("head.dense", head.dense.format(base=base, root=root))
        linear("head.out", head.out.format(base=base, root=root))
    return names


def tensor_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every canonical tensor as it stands in the weight file."""
    d, e, f = config.hidden, config.embedding_size, config.intermediate
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word": (config.vocab_size, e),
        "embeddings.position": (config.position_rows, e),
        "embeddings.token_type": (config.type_vocab_size, e),
        "embeddings.norm.weight": (e,),
        "embeddings.norm.bias": (e,),
        "embeddings.project.weight": (d, e),
        "embeddings.project.bias": (d,),
        "relative_bias": (config.relative_buckets, config.heads),
        "head.dense.weight": (d, d),
        "head.dense.bias": (d,),
        "head.out.weight": (len(config.labels), d),
        "head.out.bias": (len(config.labels),),
    }
    for i in range(config.layers):
        for name, rows, columns in (
            ("q", d, d),
            ("k", d, d),
            ("v", d, d),
            ("o", d, d),
            ("ffn_in", f, d),
            ("ffn_out", d, f),
        ):
            shapes[f"layers.{i}.{name}.weight"] = (rows, columns)
            shapes[f"layers.{i}.{name}.bias"] = (rows,)
        for name in ("attention_norm", "ffn_norm"):
            shapes[f"layers.{i}.{name}.weight"] = (d,)
            shapes[f"layers.{i}.{name}.bias"] = (d,)
    return shapes


def relative_buckets(
    distance: NDArray[np.int64], buckets: int = 32, max_distance: int = 128
) -> NDArray[np.int64]:
    """MPNet's bucket of each ``key position - query position``; same shape as ``distance``.

    The logarithm is taken in float32 as the original does: in float64 a distance on the edge of a
    bucket could land in its neighbour.
    """
    half = buckets // 2
    exact = half // 2
    n = np.abs(distance)
    ratio = np.maximum(n, 1).astype(np.float32) / np.float32(exact)
    scaled = np.log(ratio) / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    large = np.minimum(exact + scaled.astype(np.int64), half - 1)
    return np.where(distance > 0, half, 0) + np.where(n < exact, n, large)


def expand_relative_bias(table: NDArray[np.float32], max_positions: int) -> NDArray[np.float32]:
    """Turn a bucket table [buckets, heads] into one column per distance [heads, 2*max_positions-1].

    Column ``key - query + max_positions - 1`` holds the bias of that distance.
    """
    distance = np.arange(-(max_positions - 1), max_positions, dtype=np.int64)
    # The original looks distances up among 32 buckets whatever the table's size.
    return np.ascontiguousarray(table[relative_buckets(distance)].T)
