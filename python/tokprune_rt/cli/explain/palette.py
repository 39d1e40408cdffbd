"""Colours for the layers at which tokens leave: light for the first, dark for the last.

Lightness falls along the scale, so it can be told apart without telling hues apart.
"""

from __future__ import annotations

from collections.abc import Sequence

Rgb = tuple[int, int, int]

_ANCHORS: tuple[Rgb, ...] = (
    (253, 224, 113),
    (248, 166, 78),
    (231, 106, 91),
    (189, 58, 122),
    (125, 40, 141),
    (58, 36, 128),
)


def layer_colours(layers: Sequence[int]) -> dict[int, Rgb]:
    """A colour for each layer, spread evenly over the scale."""
    last = max(len(layers) - 1, 1)
    return {layer: _at(i / last) for i, layer in enumerate(sorted(layers))}


def _at(share: float) -> Rgb:
    place = share * (len(_ANCHORS) - 1)
    low = min(int(place), len(_ANCHORS) - 2)
    part = place - low
    red, green, blue = (
        round(a + (b - a) * part) for a, b in zip(_ANCHORS[low], _ANCHORS[low + 1], strict=True)
    )
    return red, green, blue


def hex_colour(colour: Rgb) -> str:
    """``"#rrggbb"``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def luminance(colour: Rgb) -> float:
    """Relative luminance as the Web Content Accessibility Guidelines define it."""
    linear = [
        c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink(colour: Rgb) -> str:
    """Black or white, whichever reads better on ``colour``."""
    level = luminance(colour)
    return "#000000" if (level + 0.05) / 0.05 >= 1.05 / (level + 0.05) else "#ffffff"
