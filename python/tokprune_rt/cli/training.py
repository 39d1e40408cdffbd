"""`tokprune finetune`, `tokprune train` and `tokprune evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tokprune_rt.cli.console import err, out, trimmed
from tokprune_rt.cli.options import (
    PolicyOption,
    PresetOption,
    SetOption,
    ThreadsOption,
    policy_source,
)
from tokprune_rt.files import atomic_file, check_target

if TYPE_CHECKING:
    from tokprune_rt.train import Evaluation, Result, Run

_DATA = "Data"
_LOOP = "Training"

SourceArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="The model to start from.", show_default=False)
]
OutArgument = Annotated[
    Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)
]


def _data(name: str, text: str) -> Any:
    return typer.Option(name, metavar="FILE", help=text, rich_help_panel=_DATA, show_default=False)


TrainOption = Annotated[Path, _data("--train", "Examples to learn from: .tsv, .csv or .jsonl.")]
DevOption = Annotated[Path, _data("--dev", "Examples to choose by.")]
TextOption = Annotated[
    str,
    typer.Option(
        "--text",
        metavar="COLUMN",
        help="Column of the text: its name, or its number from 0 in a file without a header.",
        rich_help_panel=_DATA,
    ),
]
PairOption = Annotated[
    str | None,
    typer.Option(
        "--pair",
        metavar="COLUMN",
        help="Column of the second text of a pair.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
LabelOption = Annotated[
    str,
    typer.Option("--label", metavar="COLUMN", help="Column of the label.", rich_help_panel=_DATA),
]
RegressionOption = Annotated[
    bool, typer.Option("--regression", help="Labels are numbers.", rich_help_panel=_DATA)
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="accuracy (default), f1, matthews; of a regression spearman (default) or pearson.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
LengthOption = Annotated[
    int | None,
    typer.Option(
        "--max-length",
        metavar="N",
        min=8,
        help="Tokens to which texts are cut; default: the model's limit.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
BatchOption = Annotated[
    int,
    typer.Option("--batch-size", metavar="N", min=1, help="Of a step.", rich_help_panel=_LOOP),
]
SeedOption = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, help="Of everything.", rich_help_panel=_LOOP)
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="cpu, cuda ...", rich_help_panel=_LOOP),
]


def _number(name: str, text: str, **limits: Any) -> Any:
    return typer.Option(name, metavar="X", help=text, rich_help_panel=_LOOP, **limits)


def need_torch() -> None:
    """ImportError that says what to install, unless training can be imported."""
    try:
        import tokprune_rt.train  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{error}; training needs PyTorch and transformers: pip install 'tokprune-rt[train]'"
        ) from error


def _run(
    source: str,
    target: Path,
    train: Path,
    dev: Path,
    columns: tuple[str, str | None, str],
    regression: bool,
    metric: str | None,
    max_length: int | None,
    batch_size: int,
    seed: int,
    device: str,
    threads: int | None,
) -> Run:
    need_torch()
    import torch

    from tokprune_rt._core import default_threads
    from tokprune_rt.train import Columns, Run, Settings, read_examples

    torch.set_num_threads(threads or default_threads())
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {error}") from error
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
        Settings(batch_size=batch_size, seed=seed, device=device),
        lambda line: err().print(line, markup=False, soft_wrap=True),
    )


def _report(result: Result) -> None:
    scores = ", ".join(f"{name} {score:.2f}" for name, score in result.scores.items())
    out().print(f"wrote {result.folder}; dev: {scores}", markup=False, soft_wrap=True)


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
    epochs: Annotated[int, _number("--epochs", "Passes over the examples.", min=1)] = 3,
    rate: Annotated[float, _number("--rate", "Learning rate.")] = 5e-5,
    batch_size: BatchOption = 32,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
) -> None:
    """Fine-tune a dense classifier or regression.

    An interrupted run goes on where it stopped when it is started again.

    [bold]Examples[/bold]

      tokprune finetune all-MiniLM-L6-v2 sst2 --train train.tsv --dev dev.tsv --text sentence
      tokprune finetune all-MiniLM-L6-v2 sts --train t.csv --dev d.csv --text a --pair b
        --label score --regression
    """
    run = _run(
        source, target, train, dev, (text, pair, label), regression, metric, max_length,
        batch_size, seed, device, threads,
    )  # fmt: skip
    from tokprune_rt.train import finetune as recipe

    _report(recipe(run, epochs=epochs, rate=rate))


train_app = typer.Typer(
    name="train", no_args_is_help=True, help="Learn what to prune, on a fine-tuned model."
)


@train_app.command("ltp")
def train_ltp(
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
    penalty: Annotated[
        float, _number("--penalty", "Weight of the tokens that stay; more prunes more.", min=0)
    ] = 0.1,
    soft_epochs: Annotated[int, _number("--soft-epochs", "Of learning thresholds.", min=1)] = 3,
    hard_epochs: Annotated[int, _number("--hard-epochs", "Under the decisions.", min=1)] = 2,
    rate: Annotated[float, _number("--rate", "Learning rate of the weights.")] = 2e-5,
    threshold_rate: Annotated[
        float, _number("--threshold-rate", "Learning rate of the thresholds.")
    ] = 5e-3,
    s_pad: Annotated[
        float | None,
        _number("--s-pad", "Divide scores by this length, as the published code does.", min=1),
    ] = None,
    batch_size: BatchOption = 32,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
) -> None:
    """Learned Token Pruning: a threshold on received attention for each layer.

    MODEL is a fine-tuned classifier or regression, for example from
    `tokprune finetune`.

    [bold]Example[/bold]

      tokprune train ltp sst2 sst2-ltp --train train.tsv --dev dev.tsv --text sentence
    """
    run = _run(
        source, target, train, dev, (text, pair, label), regression, metric, max_length,
        batch_size, seed, device, threads,
    )  # fmt: skip
    from tokprune_rt.train import train_ltp as recipe

    _report(
        recipe(
            run,
            penalty=penalty,
            soft_epochs=soft_epochs,
            hard_epochs=hard_epochs,
            rate=rate,
            threshold_rate=threshold_rate,
            s_pad=s_pad,
        )
    )


@train_app.command("top")
def train_top(
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
        float, _number("--target-macs", "Work that is left, of the dense model's.", min=0, max=1)
    ] = 0.5,
    bins: Annotated[int, _number("--bins", "Parts into which ranks are cut.", min=2)] = 20,
    epochs: Annotated[int, _number("--epochs", "Of learning bits and gates.", min=1)] = 5,
    hard_epochs: Annotated[int, _number("--hard-epochs", "Under the decisions.", min=1)] = 2,
    rate: Annotated[float, _number("--rate", "Learning rate of the weights.")] = 3e-5,
    mask_rate: Annotated[
        float, _number("--mask-rate", "Learning rate of bits, gates and multipliers.")
    ] = 0.05,
    batch_size: BatchOption = 32,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
) -> None:
    """ToP: which ranks leave at which layers, under a budget of multiply-adds.

    MODEL is a fine-tuned classifier or regression, for example from
    `tokprune finetune`; it is also the teacher.

    [bold]Example[/bold]

      tokprune train top sst2 sst2-top --train train.tsv --dev dev.tsv --target-macs 0.4
    """
    run = _run(
        source, target, train, dev, (text, pair, label), regression, metric, max_length,
        batch_size, seed, device, threads,
    )  # fmt: skip
    from tokprune_rt.train import train_top as recipe

    _report(
        recipe(
            run,
            target=macs,
            bins=bins,
            epochs=epochs,
            hard_epochs=hard_epochs,
            rate=rate,
            mask_rate=mask_rate,
        )
    )


def evaluate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model folder.", show_default=False)
    ],
    data: Annotated[Path, _data("--data", "Labelled texts: .tsv, .csv or .jsonl.")],
    text: TextOption = "text",
    pair: PairOption = None,
    label: LabelOption = "label",
    metric: MetricOption = None,
    policy: PolicyOption = None,
    preset: PresetOption = None,
    settings: SetOption = None,
    precisions: Annotated[
        list[str] | None,
        typer.Option(
            "--precision", metavar="NAME", help="Repeatable; default: fp32.", show_default=False
        ),
    ] = None,
    padded_to: Annotated[
        int,
        typer.Option("--padded-to", metavar="N", min=1, help="Length of the padded baseline."),
    ] = 128,
    threads: ThreadsOption = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all results.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw score over time.", show_default=False),
    ] = None,
) -> None:
    """Score, tokens, multiply-adds and time of a model, dense and pruned.

    [bold]Example[/bold]

      tokprune evaluate sst2-ltp --data dev.tsv --text sentence --precision fp32 --precision int8
    """
    for path in (json_file, plot):
        if path is not None:
            check_target(path)
    need_torch()
    if plot is not None:
        import matplotlib  # noqa: F401 - better missed now than after the measurement
    from tokprune_rt.train import Columns, read_examples
    from tokprune_rt.train import evaluate as measure

    found = measure(
        model,
        read_examples(data, Columns(text, label, pair)),
        policy=policy_source(str(model), policy, preset, settings),
        metric=metric,
        precisions=precisions or ["fp32"],
        padded_to=padded_to,
        threads=threads,
    )
    with trimmed(out()) as console:
        console.print(_table(found))
    if json_file is not None:
        with atomic_file(json_file) as file:
            file.write(json.dumps(found.to_dict(), indent=2).encode())
    if plot is not None:
        from tokprune_rt.train.plotting import draw

        draw(found, plot)


def _table(found: Evaluation) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("precision")
    table.add_column("profile")
    padded = f"padded to {found.padded_to}"
    for name in (found.metric, "kept", "MACs", f"of {padded}", "ms", "as fast"):
        table.add_column(name, justify="right")
    for row in found.rows:
        table.add_row(
            row.precision,
            row.profile,
            f"{row.score:.2f}",
            f"{row.kept[-1]:.0%}",
            f"{row.macs:.0%}",
            f"{row.macs / row.macs_padded:.0%}",
            f"{row.ms:.0f}",
            f"{row.speedup:.2f}x",
        )
    return table
