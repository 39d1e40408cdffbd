"""`tokprune finetune` and `tokprune train`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tokprune_rt.cli.console import err, error_line, out
from tokprune_rt.cli.options import ThreadsOption
from tokprune_rt.cli.training_options import (
    LOOP,
    BatchOption,
    Bf16Option,
    ConfigOption,
    DeviceOption,
    DevOption,
    FinetunePolicyOption,
    LabelOption,
    LengthOption,
    MetricOption,
    OutArgument,
    PairOption,
    PatienceOption,
    RegressionOption,
    SeedOption,
    SourceArgument,
    TextOption,
    TrainOption,
    need_torch,
    number,
)

if TYPE_CHECKING:
    from tokprune_rt.train import Result, Run


def _run(
    source: str,
    target: Path,
    train: str,
    dev: str,
    columns: tuple[str, str | None, str],
    regression: bool,
    metric: str | None,
    max_length: int | None,
    settings: dict[str, Any],
    threads: int | None,
) -> Run:
    prepare(settings["device"], threads)
    from tokprune_rt.train import Columns, Run, Settings, read_examples

    text, pair, label = columns
    chosen = Columns(text, label, pair)
    return Run(
        source,
        target,
        read_examples(train, chosen),
        read_examples(dev, chosen),
        regression,
        metric,
        max_length,
        Settings(**settings),
        say,
    )


def prepare(device: str, threads: int | None) -> None:
    """What every command that trains does first.

    Raises ImportError that says what to install, and ValueError for a device that is not there.
    """
    need_torch()
    if threads is not None and threads < 1:
        raise ValueError(f"--threads: found {threads}; allowed: 1 or more")
    import torch

    from tokprune_rt._core import default_threads
    from tokprune_rt.train.folders import quiet_transformers

    torch.set_num_threads(threads or default_threads())
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {error}") from error
    quiet_transformers()


def say(line: str) -> None:
    """A line of progress."""
    err().print(line, markup=False, soft_wrap=True)


# What checkpoints call by other names than the command line.
_CALLED = {
    "model": "MODEL",
    "weights": "MODEL's weights",
    "policy": "policy",
    "target": "--target-macs",
    "speedup": "--target-speedup",
    "data": "data",
    "labels": "labels",
    "examples": "numbers of examples",
    "method": "method",
    "dense": "--dense-share",
}

# Those whose values are digests.
_DIGESTS = ("weights", "policy", "data")


@contextmanager
def resumable(target: Path) -> Iterator[None]:
    """Errors and interruptions that speak of the command: its options, and how it goes on."""
    from tokprune_rt.train.loop import OtherRunError
    from tokprune_rt.train.runs import checkpoint_of

    try:
        yield
    except OtherRunError as error:

        def call(name: str, value: Any) -> str:
            if name == "bf16":
                return "--bf16" if value else "--fp32"
            called = _CALLED.get(name, f"--{name.replace('_', '-')}")
            if value is None:
                return f"no {called}"
            return f"{called} {str(value)[:12] if name in _DIGESTS else repr(value)}"

        raise ValueError(error.told(call)) from error
    except KeyboardInterrupt:
        path = checkpoint_of(target)
        if path is None:
            error_line("interrupted before the first checkpoint; the same command begins anew")
        else:
            error_line(f"interrupted; the same command goes on from {path}")
        raise typer.Exit(130) from None


def _report(result: Result) -> None:
    scores = ", ".join(f"{name} {score:.2f}" for name, score in result.scores.items())
    work = "" if result.macs is None else f", {result.macs:.0%} of the multiply-adds"
    out().print(f"wrote {result.folder}; dev: {scores}{work}", markup=False, soft_wrap=True)


def finetune(
    source: SourceArgument,
    target: OutArgument,
    train: TrainOption,
    dev: DevOption,
    text: TextOption = "text",
    pair: PairOption = None,
    label: LabelOption = "label",
    regression: RegressionOption = False,
    metric: MetricOption = None,
    max_length: LengthOption = None,
    epochs: Annotated[int, number("--epochs", "Passes over the examples.", min=1)] = 3,
    rate: Annotated[float, number("--rate", "Learning rate.")] = 5e-5,
    policy: FinetunePolicyOption = None,
    batch_size: BatchOption = 32,
    seed: SeedOption = 0,
    patience: PatienceOption = 0,
    bf16: Bf16Option = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    config: ConfigOption = None,
) -> None:
    """Fine-tune a classifier, regression, reranker, tagger or question answering.

    What is in the files says which: a label for each text (.tsv, .csv,
    .jsonl; numbers with --regression; 0 and 1 of pairs of a query and a
    document with --metric map), a tag for each word (.conll, or lists
    of words and tags in .jsonl), or questions in SQuAD's form (.json).

    The result is dense, or with --policy learned under its decisions.

    A checkpoint is written every minute and after every epoch, into a hidden
    folder beside OUT; an interrupted run goes on from there when the same
    command is given again.

    [bold]Examples[/bold]

      tokprune finetune all-MiniLM-L6-v2 sst2 \\
          --train train.tsv --dev dev.tsv --text sentence
      tokprune finetune all-MiniLM-L6-v2 sts --train t.csv --dev d.csv \\
          --text a --pair b --label score --regression
      tokprune finetune all-MiniLM-L6-v2 rank --train t.csv --dev d.csv \\
          --text query --pair document --metric map
      tokprune finetune all-MiniLM-L6-v2 ner --train train.conll --dev dev.conll
      tokprune finetune all-MiniLM-L6-v2 qa --train train.json --dev dev.json
    """
    settings = {
        "batch_size": batch_size,
        "seed": seed,
        "patience": patience,
        "bf16": bf16,
        "device": device,
    }
    columns = (text, pair, label)
    run = _run(
        source, target, train, dev, columns, regression, metric, max_length, settings, threads
    )
    from tokprune_rt.train import finetune as recipe

    with resumable(target):
        result = recipe(run, epochs=epochs, rate=rate, policy=policy)
    _report(result)


TrainMethod = Literal["ltp", "top", "gate", "power-bert"]


def train(
    method: Annotated[
        TrainMethod,
        typer.Argument(metavar="METHOD", help="How pruning is learned.", show_default=False),
    ],
    source: SourceArgument,
    target: OutArgument,
    train: TrainOption,
    dev: DevOption,
    text: TextOption = "text",
    pair: PairOption = None,
    label: LabelOption = "label",
    regression: RegressionOption = False,
    metric: MetricOption = None,
    max_length: LengthOption = None,
    macs: Annotated[
        float, number("--target-macs", "Work that is left, of the dense model's.", min=0, max=1)
    ] = 0.5,
    speedup: Annotated[
        float | None,
        number(
            "--target-speedup",
            "Instead: so many times as fast as dense, measured on this machine with the dev texts.",
            min=1,
        ),
    ] = None,
    epochs: Annotated[
        int | None, number("--epochs", "Of learning what to prune; default 3, of gates 4.", min=1)
    ] = None,
    hard_epochs: Annotated[
        int | None, number("--hard-epochs", "Of the weights under the decisions; default 2.", min=1)
    ] = None,
    copies: Annotated[
        int | None,
        number(
            "--copies",
            "Altered copies of each text (none of taggings and questions) that the dense model "
            "answers, for the weights to learn from under the decisions as well; default 3.",
            min=0,
        ),
    ] = None,
    rate: Annotated[
        float | None, number("--rate", "Learning rate of the weights; default 3e-5.")
    ] = None,
    method_rate: Annotated[
        float | None,
        number(
            "--method-rate",
            "Of thresholds or retentions (default 0.01), bits (0.05), gates (0.001).",
        ),
    ] = None,
    s_pad: Annotated[
        float | None,
        number("--s-pad", "ltp: divide scores by this length, as the published code does.", min=1),
    ] = None,
    bins: Annotated[
        int | None, number("--bins", "top: parts into which ranks are cut; default 20.", min=2)
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape",
            metavar="NAME",
            help="gate: transkimmer (default), adapler or tr-bert.",
            rich_help_panel=LOOP,
            show_default=False,
        ),
    ] = None,
    batch_size: BatchOption = 32,
    seed: SeedOption = 0,
    patience: PatienceOption = 0,
    bf16: Bf16Option = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    config: ConfigOption = None,
) -> None:
    """Learn what to prune, on a fine-tuned model.

    MODEL is a fine-tuned classifier, regression, tagger or question
    answering, for example from `tokprune finetune`; it is also the teacher.
    METHOD is one of

    * ltp: a threshold on received attention for each layer (LTP);
    * top: which ranks leave at which layers (ToP);
    * gate: small networks that read a token's state (Transkimmer, AdapLeR, TR-BERT);
    * power-bert: how many tokens each layer keeps (PoWER-BERT), a baseline.

    [bold]Examples[/bold]

      tokprune train ltp sst2 sst2-ltp --train t.tsv --dev d.tsv --text sentence
      tokprune train top sst2 sst2-top --train t.tsv --dev d.tsv --target-macs 0.4
    """
    own = {"s_pad": s_pad, "bins": bins, "shape": shape}
    given = {name: value for name, value in own.items() if value is not None}
    for name in given:
        if _OF_METHOD[name] != method:
            raise ValueError(
                f"--{name.replace('_', '-')} is an option of `train {_OF_METHOD[name]}`, not of "
                f"`train {method}`"
            )
    settings = {
        "batch_size": batch_size,
        "seed": seed,
        "patience": patience,
        "bf16": bf16,
        "device": device,
    }
    columns = (text, pair, label)
    run = _run(
        source, target, train, dev, columns, regression, metric, max_length, settings, threads
    )
    from tokprune_rt.train import SCHEDULES, recipes

    recipe = getattr(recipes, f"train_{method.replace('-', '_')}")
    changes: dict[str, Any] = {
        "epochs": epochs,
        "hard_epochs": hard_epochs,
        "copies": copies,
        "rate": rate,
        "method_rate": method_rate,
    }
    schedule = replace(
        SCHEDULES[method], **{name: value for name, value in changes.items() if value is not None}
    )
    with resumable(target):
        result = recipe(run, target=macs, speedup=speedup, schedule=schedule, **given)
    _report(result)


_OF_METHOD = {"s_pad": "ltp", "bins": "top", "shape": "gate"}
