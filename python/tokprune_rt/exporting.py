"""Writing a model folder that carries its pruning policy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tokprune_rt.files import atomic_folder
from tokprune_rt.loader import describe_model, resolve
from tokprune_rt.loading import choose_policy
from tokprune_rt.model import Model
from tokprune_rt.policy import JSON_NAME, TENSORS_NAME, PolicySource


def export(
    src: str | os.PathLike[str] | Model,
    dst: str | os.PathLike[str],
    policy: PolicySource = "auto",
) -> Path:
    """Write a copy of a model with its pruning policy.

    The copy loads here pruned and in other software, which ignores the policy file, dense. It
    appears under its name only when it is complete.

    Args:
        src: a loaded model, or what `load` takes as a name.
        dst: the folder to write; it must not exist or be empty.
        policy: the policy to write, as `load` takes it; ``"auto"`` is the source's own.

    Returns:
        The folder written.

    Raises:
        FileExistsError: ``dst`` is a file or a folder with something in it.
        ValueError: there is no policy to write.
        PolicyError: the policy is malformed or does not fit the model.
    """
    folder = src.folder if isinstance(src, Model) else resolve(src)
    config, setup = describe_model(folder)
    if isinstance(src, Model) and isinstance(policy, str) and policy == "auto":
        chosen = src.policy
    else:
        chosen = choose_policy(policy, folder, config, setup)
    if chosen is None:
        raise ValueError(
            f"there is no policy to write for {folder}; give a policy file or a preset"
        )
    target = Path(dst)
    with atomic_folder(target) as work:
        shutil.copytree(folder, work, ignore=_ignored, dirs_exist_ok=True)
        chosen.save(work)
    return target


def _ignored(folder: str, names: list[str]) -> set[str]:
    hidden = {name for name in names if name.startswith(".") or name == "__pycache__"}
    return hidden | ({JSON_NAME, TENSORS_NAME} & set(names))
