"""Models for training from folders, and folders from trained models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from tokprune_rt.files import atomic_folder
from tokprune_rt.loader import describe_model
from tokprune_rt.loader.tokenizer_files import TOKENIZER_FILES, read_tokenizer_config
from tokprune_rt.policy import Policy
from tokprune_rt.train import ranking
from tokprune_rt.train.answering import AnswerTask
from tokprune_rt.train.data import Data, Encoded, Questions, Sentences, tokenizer_of
from tokprune_rt.train.tagging import TagTask, default_metric, tag_task
from tokprune_rt.train.tasks import RankTask, Task, TextTask, text_task

_CLASSES = {
    TextTask.kind: AutoModelForSequenceClassification,
    TagTask.kind: AutoModelForTokenClassification,
    AnswerTask.kind: AutoModelForQuestionAnswering,
}
# Start and end, as transformers calls them.
_OUTPUTS = {AnswerTask.kind: ["LABEL_0", "LABEL_1"]}


def quiet_transformers() -> None:
    """No bars and load reports, which would stand between the lines of progress."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def encoded(source: Path, data: Data, task: Task, max_length: int | None, what: str) -> Encoded:
    """Tokenise as the runtime does; errors and the note call the data ``what``."""
    try:
        found = task.encode(data, tokenizer_of(source, max_length))
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    return replace(found, note=found.note and f"{what}: {found.note}")


def new_model(source: Path, task: Task) -> PreTrainedModel:
    """The encoder of ``source`` with a head for ``task``; one that fits already is kept."""
    _, setup = describe_model(source)
    names = list(task.labels) or _OUTPUTS.get(task.kind, ["value"])
    options: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }
    if isinstance(task, TextTask):
        kind = "regression" if task.is_regression else "single_label_classification"
        options["problem_type"] = kind
    return _CLASSES[task.kind].from_pretrained(
        setup.encoder_folder, ignore_mismatched_sizes=True, dtype=torch.float32, **options
    )


def finetuned_model(source: Path) -> PreTrainedModel:
    config, setup = describe_model(source)
    if config.task not in _CLASSES:
        raise ValueError(
            f"{source} is a {config.task} model ({config.architecture}); pruning is learned on a "
            "fine-tuned model: run `tokprune finetune` first"
        )
    return _CLASSES[config.task].from_pretrained(setup.encoder_folder, dtype=torch.float32)


def new_task(data: Data, regression: bool, metric: str | None) -> Task:
    """What there is to learn from a training set."""
    if isinstance(data, Sentences | Questions) and regression:
        raise ValueError("a regression needs texts with a number each")
    if isinstance(data, Questions):
        return AnswerTask((), metric or "f1")
    if isinstance(data, Sentences):
        return tag_task({tag for tags in data.tags for tag in tags}, metric)
    if metric in ranking.METRICS:
        return RankTask((), metric)
    return text_task(data.labels, regression, metric)


def task_of_model(model: PreTrainedModel, regression: bool, metric: str | None) -> Task:
    """The task of a fine-tuned model, whose labels must be those of the data."""
    config: Any = model.config
    count = int(config.num_labels)
    check_one_label(config.problem_type)
    name = type(model).__name__
    labels = tuple(str(config.id2label[i]) for i in range(count))
    if name.endswith("ForSequenceClassification"):
        ranked = metric in ranking.METRICS
        if (regression or ranked) != (count == 1):
            wanted = "ranking" if ranked else "regression" if regression else "classification"
            raise ValueError(f"the model has {count} outputs, which is no {wanted}")
        return existing_task(TextTask.kind, labels, metric)
    if regression:
        raise ValueError(f"the model is a {name}, which is no regression")
    tagging = name.endswith("ForTokenClassification")
    return existing_task((TagTask if tagging else AnswerTask).kind, labels, metric)


def check_one_label(problem: str | None) -> None:
    """ValueError for a classification of several labels a text."""
    if problem == "multi_label_classification":
        raise ValueError(
            "the model gives several labels to a text, which cannot be trained or evaluated yet"
        )


def existing_task(kind: str, labels: tuple[str, ...], metric: str | None) -> Task:
    """The task of a model with these outputs, ``kind`` as the runtime calls it."""
    if kind == AnswerTask.kind:
        return AnswerTask((), metric or "f1")
    if kind == TagTask.kind:
        return TagTask(labels, metric or default_metric(labels))
    if len(labels) == 1:
        if metric in ranking.METRICS:
            return RankTask((), metric)
        return TextTask((), metric or "spearman")
    return TextTask(labels, metric or "accuracy")


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
