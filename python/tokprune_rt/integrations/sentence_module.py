"""This engine as the input module of sentence-transformers' own models."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np

from tokprune_rt.integrations import features, saving
from tokprune_rt.integrations.extras import missing, require
from tokprune_rt.integrations.settings import Settings
from tokprune_rt.policy import PolicySource

try:
    import torch
    from sentence_transformers.base.modules import InputModule
except ImportError as err:
    raise missing("sentence-transformers >= 6", "sentence-transformers") from err


class TokpruneTransformer(InputModule):
    """An encoder for ``SentenceTransformer(modules=[TokpruneTransformer(...), Pooling(...)])``.

    It gives token embeddings float32 [n, longest, hidden] and a mask that is 0 for padding and for
    tokens that the pruning policy removed, so pooling modules see what is left. It cannot be
    trained. A saved model is loaded with ``trust_remote_code=True``, which sentence-transformers
    asks for whenever a module is not its own.

    Args:
        model_name_or_path: what `tokprune_rt.load` takes as a name; pooling and later modules of
            that model are not used.
        policy, precision, threads, isa: as `tokprune_rt.load`; ``policy`` is ``"off"``.
        profile: the policy's profile.
        max_seq_length: tokens to which texts are cut; default: the model's own limit.

    Raises as `tokprune_rt.load`.
    """

    config_file_name = "tokprune_config.json"

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        *,
        policy: PolicySource = "off",
        profile: str | None = None,
        precision: str = "auto",
        threads: int | None = None,
        isa: str | None = None,
        max_seq_length: int | None = None,
    ) -> None:
        super().__init__()
        self._settings = Settings(model_name_or_path, policy, profile, precision, threads, isa)
        self._model = self._settings.load()
        if max_seq_length is not None:
            self.max_seq_length = max_seq_length

    @property
    def policy_hash(self) -> str:
        """Identifies the pruning policy (``"off"``: none)."""
        return self._model.policy_hash

    @property
    def max_seq_length(self) -> int:
        """Tokens to which texts are cut."""
        return self._model.max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, length: int | None) -> None:
        self._model.max_seq_length = length

    @property
    def tokenizer(self) -> Any:  # type: ignore[override]
        """The model's tokenizer as transformers loads it; inference does not use it."""
        loader = require("transformers", "sentence-transformers").AutoTokenizer
        return loader.from_pretrained(
            self._model.setup.encoder_folder, model_max_length=self.max_seq_length
        )

    def get_embedding_dimension(self) -> int:
        """Width of a token embedding."""
        return self._model.config.hidden

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Token ids of texts or pairs as int64 tensors [n, longest]."""
        return features.preprocess(self._model, list(inputs), prompt)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add ``token_embeddings`` and take removed tokens out of ``attention_mask``."""
        mask = features["attention_mask"].numpy().astype(bool)
        ids, types = features["input_ids"].numpy(), features.get("token_type_ids")
        given = None if types is None else [r[m] for r, m in zip(types.numpy(), mask, strict=True)]
        output = self._model.forward(
            [row[kept] for row, kept in zip(ids, mask, strict=True)], given, self._settings.profile
        )
        rows = np.zeros((*mask.shape, self._model.config.hidden), dtype=np.float32)
        alive = np.zeros(mask.shape, dtype=np.int64)
        for index, (hidden, positions) in enumerate(
            zip(output.hidden, output.positions, strict=True)
        ):
            places = np.flatnonzero(mask[index])[positions]
            rows[index, places] = hidden
            alive[index, places] = 1
        features["token_embeddings"] = torch.from_numpy(rows)
        features["attention_mask"] = torch.from_numpy(alive)
        return features

    def get_config_dict(self) -> dict[str, Any]:
        """What `load` needs beside the folder."""
        # The folder holds the policy in use, whatever it was given as.
        found = replace(self._settings, policy="off").to_dict()
        found.pop("model")
        return found | {"policy": "off" if self._model.policy is None else "auto"}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the encoder, its tokenizer, the policy in use and how to run them."""
        saving.save_encoder(self._model, output_path)
        self.save_config(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> TokpruneTransformer:
        """Read what `save` wrote."""
        hub: dict[str, Any] = {
            "token": token,
            "cache_folder": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        config = cls.load_config(model_name_or_path, subfolder, **hub)
        folder = cls.load_dir_path(model_name_or_path, subfolder, **hub)
        if folder is None:
            raise FileNotFoundError(f"there is no folder {model_name_or_path}/{subfolder}")
        return cls(folder, **((init_defaults or {}) | config))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": self.max_seq_length}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._model = self._settings.load()
        self.max_seq_length = state["_model"]
