"""Model folders: finding them and reading their configuration and weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tokprune_rt.errors import ModelFormatError
from tokprune_rt.loader.config import CoreConfig, EncoderConfig, load_config
from tokprune_rt.loader.packed import PackedFile, PackedWeights
from tokprune_rt.loader.resolve import resolve
from tokprune_rt.loader.sentence import SentenceSetup, load_setup
from tokprune_rt.loader.weights import Tensors, WeightFiles, load_dense, load_tensors

__all__ = [
    "EncoderConfig",
    "LoadedModel",
    "PackedWeights",
    "SentenceSetup",
    "describe_model",
    "load_model",
    "packed_file",
    "resolve",
]


@dataclass(frozen=True)
class LoadedModel:
    """A model folder's configuration and weights: canonical tensors, or what was packed of them."""

    folder: Path
    config: EncoderConfig
    setup: SentenceSetup
    weights: Tensors | PackedWeights

    @property
    def core_config(self) -> CoreConfig:
        """The dictionary that the extension's Encoder takes."""
        activations = [layer.activation for layer in self.setup.dense]
        return self.config.core_config(self.setup.pooling, activations)


def describe_model(folder: Path) -> tuple[EncoderConfig, SentenceSetup]:
    """Read a folder's configuration without its weights.

    Without a pooling module a plain encoder is mean-pooled, as sentence-transformers does; a model
    with a task head has no sentence embedding.
    """
    setup = load_setup(folder)
    config = load_config(setup.encoder_folder, features_only=setup.has_pooling)
    if not setup.has_pooling and config.task == "features":
        setup = replace(setup, pooling=("mean",))
    width = config.hidden * len(setup.pooling)
    for layer in setup.dense:
        if layer.in_features != width:
            raise ModelFormatError(
                f"{layer.folder / 'config.json'}: in_features is {layer.in_features}, but the "
                f"layer before gives {width}"
            )
        width = layer.out_features
    return config, setup


def packed_file(cache: Path, folder: Path, precision: str) -> PackedFile:
    """Where ``cache`` keeps the packed weights of the model in ``folder``."""
    config, setup = describe_model(folder)
    folders = [setup.encoder_folder, *(layer.folder for layer in setup.dense)]
    files = [file for place in folders for file in WeightFiles(place).files()]
    core_config = LoadedModel(folder, config, setup, {}).core_config
    return PackedFile(cache, files, core_config, precision)


def load_model(folder: Path, packed: PackedWeights | None = None) -> LoadedModel:
    """Read a folder's configuration and, unless they are given packed, all its weights."""
    config, setup = describe_model(folder)
    if packed is not None:
        return LoadedModel(folder, config, setup, packed)
    tensors = load_tensors(setup.encoder_folder, config)
    for index, layer in enumerate(setup.dense):
        sizes = {"in_features": layer.in_features, "out_features": layer.out_features}
        for part, tensor in load_dense(layer.folder, sizes, bias=layer.bias).items():
            tensors[f"dense.{index}.{part}"] = tensor
    return LoadedModel(folder, config, setup, tensors)
