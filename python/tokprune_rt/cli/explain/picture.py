"""An explanation as a PNG, drawn with matplotlib."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from tokprune_rt.cli.console import printable
from tokprune_rt.cli.explain.data import Explanation, TokenFate
from tokprune_rt.cli.explain.palette import hex_colour, ink, layer_colours
from tokprune_rt.cli.explain.terminal import notes, summary_line
from tokprune_rt.errors import how_to_install

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 92
_FONT = 11.0
# DejaVu Sans Mono, which comes with matplotlib: advance width over font size.
_CELL = _FONT * 0.6021 / 72
_LINE = _FONT * 1.85 / 72
_MARGIN = 0.45
_WIDTH = _COLUMNS * _CELL + 2 * _MARGIN
_EDGE = 0.025
_DPI = 160
_SANS, _MONO = "DejaVu Sans", "DejaVu Sans Mono"
# For the scripts that those two lack, if they are installed.
_OTHERS = (
    "Noto Sans Mono CJK JP",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
    "Hiragino Sans",
)
_TEXT = "#1c1b1f"
_SOFT = "#5d5b66"
_BARS = "#8f8ca0"


@dataclass(frozen=True)
class Piece:
    """A stretch of a token on one line, in character cells."""

    line: int
    column: int
    width: int
    text: str
    token: TokenFate


def png_bytes(explanation: Explanation) -> bytes:
    """The picture.

    Raises ImportError naming the extra to install when matplotlib is missing.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"--png needs matplotlib; install it with {how_to_install('plot')}"
        ) from error
    pieces = list(lay_out(explanation))
    lines = max((piece.line for piece in pieces), default=0) + 1
    foot = textwrap.wrap(
        " ".join([f"{summary_line(explanation)}.", *notes(explanation)]), _COLUMNS + 8
    )
    head, key, chart = 0.75, 0.5, 1.75
    below = 0.3 + 0.24 * len(foot)
    height = _MARGIN + head + key + lines * _LINE + 0.5 + chart + 0.55 + below
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    page: Axes = figure.add_axes((0, 0, 1, 1))
    page.set_xlim(0, _WIDTH)
    page.set_ylim(height, 0)
    page.axis("off")

    profile = f", profile {explanation.profile}" if explanation.profile is not None else ""
    _write(page, _MARGIN, _MARGIN + 0.1, "Which token left at which layer", size=15, weight="bold")
    subtitle = f"{explanation.model}, policy {explanation.policy}{profile}"
    _write(page, _MARGIN, _MARGIN + 0.42, textwrap.shorten(subtitle, 100), colour=_SOFT)
    _draw_key(page, explanation, _MARGIN + head + 0.15)
    top = _MARGIN + head + key
    _draw_text(page, explanation, pieces, top)
    bottom = top + lines * _LINE + 0.5
    box = (0.5 + _MARGIN, height - bottom - chart, _WIDTH - 2 * _MARGIN - 0.5, chart)
    axes = figure.add_axes((box[0] / _WIDTH, box[1] / height, box[2] / _WIDTH, box[3] / height))
    _draw_layers(axes, explanation)
    for number, line in enumerate(foot):
        y = bottom + chart + 0.7 + 0.24 * number
        _write(page, _MARGIN, y, line, size=10, colour=_SOFT)
    buffer = io.BytesIO()
    # Hinted letters would not be as wide as the cells that the layout reckons with.
    with warnings.catch_warnings(), rc_context({"text.hinting": "none"}):
        # The font lacks some scripts; their characters become boxes, the marks stay right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", metadata={"Title": subtitle, "Software": None})
    return buffer.getvalue()


def lay_out(explanation: Explanation, columns: int = _COLUMNS) -> Iterator[Piece]:
    """Breaks the running text into lines: between words, and within words longer than a line."""
    line = column = 0
    before: TokenFate | None = None
    tokens = explanation.tokens
    for place, token in enumerate(tokens):
        shown = printable(" ".join(token.shown.split())) or token.token
        apart = before is not None and (bool(token.gap) or token.special or before.special)
        if apart:
            line += min(token.gap.count("\n"), 2)
            column = 0 if "\n" in token.gap else column + 1
            # A word moves to the next line as a whole.
            word = cell_len(shown)
            for later in tokens[place + 1 :]:
                if later.gap or later.special or token.special:
                    break
                word += cell_len(later.text)
            if column > 0 and column + min(word, columns) > columns:
                line, column = line + 1, 0
        start, width, part = column, 0, ""
        for character in shown:
            size = cell_len(character)
            if start + width + size > columns and (start or part):
                if part:
                    yield Piece(line, start, width, part, token)
                line, start, width, part = line + 1, 0, 0, ""
            part += character
            width += size
        yield Piece(line, start, width, part, token)
        column = start + width
        before = token


@cache
def _other_fonts() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in _OTHERS if name in installed)


def _write(page: Axes, x: float, y: float, text: str, **options: Any) -> None:
    page.text(
        x,
        y,
        text,
        fontsize=options.get("size", _FONT),
        color=options.get("colour", _TEXT),
        family=[options.get("family", _SANS), *_other_fonts()],
        weight=options.get("weight", "normal"),
        style=options.get("style", "normal"),
        ha=options.get("align", "left"),
        va="center",
        parse_math=False,
    )


def _mark(
    page: Axes, x: float, y: float, width: float, colour: str, *, edges: tuple[bool, bool]
) -> None:
    """A coloured box; ``edges`` tells on which sides it may stand out into a gap."""
    from matplotlib.patches import FancyBboxPatch

    height = _LINE * 0.72
    before, after = (_EDGE if edge else 0.0 for edge in edges)
    page.add_patch(
        FancyBboxPatch(
            (x - before, y - height / 2),
            width + before + after,
            height,
            boxstyle="round,pad=0,rounding_size=0.035",
            facecolor=colour,
            edgecolor="none",
        )
    )


def _draw_key(page: Axes, explanation: Explanation, y: float) -> None:
    if not explanation.pruning_layers:
        _write(page, _MARGIN, y, "Nothing is pruned: every token stays to the end.", colour=_SOFT)
        return
    _write(page, _MARGIN, y, "Left at layer", colour=_SOFT)
    x = _MARGIN + 1.15
    for layer, colour in layer_colours(explanation.pruning_layers).items():
        _mark(page, x, y, 0.25, hex_colour(colour), edges=(True, True))
        _write(page, x + 0.125, y, str(layer), colour=ink(colour), align="center", size=10)
        x += 0.34
        if x > _WIDTH - _MARGIN - 2.2:
            break
    _write(page, x + 0.15, y, "bold", weight="bold", family=_MONO)
    _write(page, x + 0.62, y, "stayed to the end", colour=_SOFT)


def _draw_text(page: Axes, explanation: Explanation, pieces: list[Piece], top: float) -> None:
    colours = layer_colours(explanation.pruning_layers)
    taken = {(piece.line, piece.column) for piece in pieces}
    ends = {(piece.line, piece.column + piece.width) for piece in pieces}
    for piece in pieces:
        x = _MARGIN + piece.column * _CELL
        y = top + (piece.line + 0.5) * _LINE
        left = piece.token.left
        if left is not None:
            begin, end = piece.column, piece.column + piece.width
            edges = ((piece.line, begin) not in ends, (piece.line, end) not in taken)
            _mark(page, x, y, piece.width * _CELL, hex_colour(colours[left]), edges=edges)
        _write(
            page,
            x,
            y,
            piece.text,
            family=_MONO,
            colour=_TEXT if left is None else ink(colours[left]),
            weight="bold" if left is None else "normal",
            style="italic" if piece.token.special else "normal",
        )


def _draw_layers(axes: Axes, explanation: Explanation) -> None:
    colours = layer_colours(explanation.pruning_layers)
    left = explanation.left_at
    layers = range(explanation.layers)
    count = len(explanation.tokens)
    axes.bar(layers, explanation.kept, width=0.7, color=_BARS, label="stay")
    gone = [left.get(layer, 0) for layer in layers]
    axes.bar(
        layers,
        gone,
        width=0.7,
        bottom=explanation.kept,
        color=[hex_colour(colours[n]) if n in colours else _BARS for n in layers],
    )
    every = max(1, explanation.layers // 12)
    for layer, alive in enumerate(explanation.kept):
        if layer % every == 0:
            label = f"{alive}" if not gone[layer] else f"{alive}  (-{gone[layer]})"
            if explanation.layers > 8:
                label = str(alive)
            axes.annotate(
                label,
                (layer, alive + gone[layer]),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=_TEXT,
            )
    axes.set_xticks(list(layers))
    axes.set_ylim(0, max(count, 1) * 1.18)
    axes.set_xlim(-0.6, explanation.layers - 0.4)
    axes.set_xlabel("layer", color=_SOFT, fontsize=10)
    axes.set_ylabel("tokens", color=_SOFT, fontsize=10)
    axes.tick_params(colors=_SOFT, labelsize=9, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#d9d7e0")
