"""An explanation in the terminal: coloured, or with brackets where there are no colours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from tokprune_rt.cli.console import print_list, printable, unicode_ok
from tokprune_rt.cli.explain.data import Explanation, TokenFate
from tokprune_rt.cli.explain.palette import hex_colour, ink, layer_colours

_BAR = 24


def has_colours(console: Console) -> bool:
    """Whether the console shows colours."""
    return console.color_system is not None and not console.no_color


def running_text(
    explanation: Explanation, *, colours: bool, tokens: Sequence[TokenFate] | None = None
) -> Text:
    """The text with every token marked by the layer at which it left.

    Args:
        explanation: the explanation.
        colours: mark by colour; else by brackets, ``{2:the rent}``.
        tokens: only these tokens.
    """
    shown = explanation.tokens if tokens is None else tokens
    return _coloured(explanation, shown) if colours else _bracketed(shown)


def _style(explanation: Explanation) -> dict[int | None, str]:
    colours = layer_colours(explanation.pruning_layers)
    styles: dict[int | None, str] = {
        layer: f"{ink(colour)} on {hex_colour(colour)}" for layer, colour in colours.items()
    }
    return styles | {None: "bold"}


def _space(token: TokenFate, before: TokenFate | None) -> str:
    """What stands between two tokens: the text's own gap; special tokens stand apart."""
    if before is None:
        return printable(token.gap.lstrip())
    if not token.gap and (token.special or before.special):
        return " "
    return printable(token.gap)


def _coloured(explanation: Explanation, tokens: Sequence[TokenFate]) -> Text:
    styles = _style(explanation)
    text = Text()
    before: TokenFate | None = None
    for token in tokens:
        text.append(_space(token, before))
        style = styles[token.left] + (" italic" if token.special else "")
        text.append(printable(token.shown), style)
        before = token
    return text


def _bracketed(tokens: Sequence[TokenFate]) -> Text:
    text = Text()
    before: TokenFate | None = None
    for left, run in groupby(tokens, key=lambda token: token.left):
        for place, token in enumerate(run):
            text.append(_space(token, before))
            if place == 0 and left is not None:
                text.append(f"{{{left}:")
            text.append(printable(token.shown))
            before = token
        if left is not None:
            text.append("}")
    return text


def legend(explanation: Explanation, *, colours: bool, blocks: bool) -> RenderableType:
    """Per layer: its mark, how many tokens left and how many go on."""
    styles = _style(explanation)
    count = len(explanation.tokens)
    left = explanation.left_at
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("layer", justify="right")
    table.add_column("left", justify="right")
    table.add_column("stay", justify="right")
    table.add_column("")
    for layer, alive in enumerate(explanation.kept):
        pruning = layer in left
        mark = Text(f" {layer} ", styles[layer] if pruning and colours else "")
        bar = ("\u2588" if blocks else "#") * max(round(_BAR * alive / max(count, 1)), alive > 0)
        table.add_row(mark, str(left[layer]) if pruning else "", str(alive), Text(bar, "dim"))
    return table


def show(explanation: Explanation, console: Console) -> None:
    """Prints the explanation."""
    colours = has_colours(console)
    blocks = unicode_ok(console)
    console.print(_headline(explanation))
    print_list(console, explanation.words)
    console.print()
    console.print(running_text(explanation, colours=colours))
    console.print()
    if any(explanation.left_at.values()):
        console.print(key_line(explanation, colours=colours))
        console.print()
        console.print(legend(explanation, colours=colours, blocks=blocks))
        console.print()
    console.print(summary_line(explanation))
    for note in notes(explanation):
        console.print(note, style="dim", markup=False)


def _headline(explanation: Explanation) -> Text:
    text = Text.assemble((printable(explanation.model), "bold"), f"  policy {explanation.policy}")
    if explanation.profile is not None:
        text.append(f", profile {explanation.profile}")
    return text


def key_line(explanation: Explanation, *, colours: bool) -> Text:
    """How to read the marks."""
    layers = explanation.pruning_layers
    if not colours:
        left = [token.left for token in explanation.tokens if token.left is not None]
        example = min(left, default=layers[0])
        return Text(f"{{{example}:...}} left at layer {example}; unmarked tokens stay to the end")
    styles = _style(explanation)
    text = Text("left at layer ")
    for layer in layers:
        text.append(f" {layer} ", styles[layer])
    text.append("   ")
    text.append("bold", "bold")
    text.append(" stays to the end")
    return text


def summary_line(explanation: Explanation) -> Text:
    """Tokens and work in one line."""
    return Text(
        f"{explanation.stayed} of {len(explanation.tokens)} tokens stay to the end; "
        f"{100 * explanation.share:.0f}% of the dense multiply-adds"
    )


def notes(explanation: Explanation) -> list[str]:
    """What a reader should also know."""
    found = []
    if explanation.pruning_layers and not any(explanation.left_at.values()):
        found.append("The policy lets nothing of this text leave.")
    if explanation.cut:
        found.append(
            f"The text was cut to {len(explanation.tokens)} tokens; {explanation.cut} characters "
            "are not shown."
        )
    if explanation.merged and explanation.stayed < len(explanation.tokens):
        found.append(
            "What leaves at a layer is merged into one row, which counts as a token from then on."
        )
    if explanation.grouped and explanation.stayed < len(explanation.tokens):
        found.append("What leaves by merging or pooling lives on in the row of a token that stays.")
    return found
