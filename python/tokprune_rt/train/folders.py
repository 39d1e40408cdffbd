"""Models for training from folders, and folders from trained models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from tokprune_rt.files import atomic_folder
from tokprune_rt.loader import describe_model
from tokprune_rt.loader.tokenizer_files import TOKENIZER_FILES, read_tokenizer_config
from tokprune_rt.policy import Policy
from tokprune_rt.train.data import Encoded, Examples, tokenizer_of
from tokprune_rt.train.tasks import Task


def quiet_transformers() -> None:
    """No bars and load reports, which would stand between the lines of progress."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def encoded(source: Path, data: Examples, task: Task, max_length: int | None, what: str) -> Encoded:
    """Tokenise as the runtime does; ValueError for a label that the task does not have, which calls
    the examples ``what``."""
    try:
        targets = task.targets(data.labels)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    return Encoded(tokenizer_of(source, max_length).tokenize(data.texts), targets)


def new_model(source: Path, task: Task) -> PreTrainedModel:
    """The encoder of ``source`` with a head for ``task``; one that fits already is kept."""
    _, setup = describe_model(source)
    names = list(task.labels) or ["value"]
    return AutoModelForSequenceClassification.from_pretrained(
        setup.encoder_folder,
        num_labels=task.outputs,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        problem_type="regression" if task.is_regression else "single_label_classification",
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
    )


def finetuned_model(source: Path) -> PreTrainedModel:
    config, setup = describe_model(source)
    if config.task != "sequence-classification":
        raise ValueError(
            f"{source} is a {config.task} model ({config.architecture}); pruning is learned on a "
            "fine-tuned classifier or regression: run `tokprune finetune` first"
        )
    return AutoModelForSequenceClassification.from_pretrained(
        setup.encoder_folder, dtype=torch.float32
    )


def task_of_model(model: PreTrainedModel, regression: bool, metric: str | None) -> Task:
    """The task of a fine-tuned model, whose labels must be those of the data."""
    config: Any = model.config
    count = int(config.num_labels)
    if config.problem_type == "multi_label_classification":
        raise ValueError("the model gives several labels to a text, which cannot be trained yet")
    if regression != (count == 1):
        raise ValueError(
            f"the model has {count} outputs, which is no "
            f"{'regression' if regression else 'classification'}"
        )
    if regression:
        return Task((), metric or "spearman")
    labels = tuple(str(config.id2label[i]) for i in range(count))
    return Task(labels, metric or "accuracy")


def separators(source: Path) -> list[int]:
    """Ids of the special tokens, which attention uses as sinks and which therefore stay."""
    tokenizer = tokenizer_of(source)
    return sorted(tokenizer.special_ids - {tokenizer.unknown_id})


def write_model(
    out: Path, source: Path, model: PreTrainedModel, max_length: int | None, policy: Policy | None
) -> None:
    """Write the finished folder, with the tokenizer of ``source`` as training used it."""
    _, setup = describe_model(source)
    used = tokenizer_of(source, max_length)
    with atomic_folder(out) as work:
        torch.nn.Module.to(model, "cpu")
        model.save_pretrained(work)
        for name in TOKENIZER_FILES:
            if (setup.encoder_folder / name).is_file():
                shutil.copyfile(setup.encoder_folder / name, work / name)
        # Weights are written readable by their owner alone.
        for path in work.iterdir():
            path.chmod((work.stat().st_mode & 0o666) | 0o200)
        options = read_tokenizer_config(setup.encoder_folder)
        options["model_max_length"] = used.max_length
        if setup.do_lower_case:
            options["do_lower_case"] = True
        text = json.dumps(options, indent=2, ensure_ascii=False)
        (work / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
        if policy is not None:
            policy.save(work)
