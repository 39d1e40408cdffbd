"""`tokprune explain`: what it says about every token, and its terminal, page and picture."""

from __future__ import annotations

import json
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BuildModel
from typer.testing import CliRunner

import tokprune_rt
from tokprune_rt.cli.app import app
from tokprune_rt.cli.explain.data import Explanation, explain_text
from tokprune_rt.cli.explain.page import html_page
from tokprune_rt.cli.explain.palette import hex_colour, ink, layer_colours, luminance
from tokprune_rt.cli.explain.picture import lay_out, png_bytes
from tokprune_rt.cli.explain.terminal import running_text
from tokprune_rt.policy import preset

MINILM = "all-MiniLM-L6-v2"
NASTY = (
    'Unbelievably counterrevolutionary <script>alert("x")</script> & {braces} \x1b[31mred, '
    "\u4f60\u597d caf\u00e9 $x^2$ costs $5."
)
MERGED: dict[str, Any] = {"action": "package", "output": {"kind": "mean", "over": "size"}}


def pruned(name: str = "quantile", **parameters: Any) -> Any:
    return tokprune_rt.load(MINILM, policy=preset(name, layers=6, **parameters))


@pytest.fixture(scope="module")
def nasty(minilm_folder: Path) -> Explanation:
    return explain_text(pruned(q=0.25), NASTY)


class Page(HTMLParser):
    """The text of a page, its cells and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        self._cell = tag == "td" or (self._cell and tag not in ("th", "tr"))

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def test_fates_agree_with_the_trace(minilm_folder: Path) -> None:
    for model in (
        pruned(q=0.25),
        pruned("lat"),
        pruned("ltp", official=True, final_threshold=0.02),
    ):
        text = "The tenant shall pay the rent in advance on the first working day of every month."
        found = explain_text(model, text)
        ids = model.tokenizer.encodings([text])[0].ids
        trace = model.forward([ids], trace=True).trace
        for layer in range(6):
            alive = [t.position for t in found.tokens if t.left is None or t.left > layer]
            assert alive == trace.kept[layer][0].tolist()
        for token in found.tokens:
            if token.left is not None:
                assert token.score == trace.scores[token.left][0][token.position]
        assert list(found.left_at.values()) == list(
            -np.diff([len(ids), *(len(layer[0]) for layer in trace.kept)])[
                list(found.pruning_layers)
            ]
        )


def test_merged_tokens_have_left(minilm_folder: Path) -> None:
    text = "The tenant shall pay the rent in advance on the first day."
    found = explain_text(pruned(q=0.3, locations=[2], **MERGED), text)
    assert found.merged and found.left_at == {2: 3}
    # The row into which they were merged counts as a token.
    assert found.kept == (len(found.tokens),) * 2 + (found.stayed + 1,) * 4
    found = explain_text(pruned(q=0.3, **MERGED), text)
    for before, layer in enumerate(found.pruning_layers, 1):
        gone = found.kept[before] - found.kept[layer]
        # Merged rows may be merged once more.
        assert 0 < found.left_at[layer] <= gone + 1
    assert found.kept[-1] > found.stayed


def test_rows_of_merged_tokens(minilm_folder: Path) -> None:
    model = tokprune_rt.load(minilm_folder, policy=preset("tome", layers=6, ratio=0.8))
    found = explain_text(model, "The tenant shall pay the rent in advance on the first day.")
    stayed = {token.position for token in found.tokens if token.left is None}
    assert len(stayed) < len(found.tokens) and {token.row for token in found.tokens} == stayed
    rows = [token["row"] for token in found.to_dict()["tokens"]]
    assert all((row == place) == (place in stayed) for place, row in enumerate(rows))
    dropped = explain_text(pruned(q=0.3), "The tenant shall pay the rent in advance.").to_dict()
    for token in dropped["tokens"]:
        assert token["row"] == (token["position"] if token["left_at_layer"] is None else None)


def test_dense_model_keeps_everything(minilm: Any) -> None:
    found = explain_text(minilm, "one two")
    assert found.stayed == 4 and found.pruning_layers == () and found.share == 1
    assert running_text(found, colours=False).plain == "[CLS] one two [SEP]"
    result = CliRunner().invoke(app, ["explain", MINILM, "one two"])
    assert result.exit_code == 0 and "try --preset" in result.stderr


def test_running_text_is_the_text(nasty: Explanation) -> None:
    plain = running_text(nasty, colours=True).plain
    assert plain == f"[CLS] {NASTY} [SEP]".replace("\x1b", "\ufffd")
    marked = running_text(nasty, colours=False).plain
    assert "\x1b" not in marked
    for layer in {t.left for t in nasty.tokens} - {None}:
        assert f"{{{layer}:" in marked


def test_pair_and_cut(minilm_folder: Path) -> None:
    found = explain_text(pruned(q=0.2), "a first text", "and a second")
    assert running_text(found, colours=True).plain == (
        "[CLS] a first text [SEP] and a second [SEP]"
    )
    found = explain_text(pruned(q=0.2), "word " * 300)
    assert len(found.tokens) == 256 and found.cut > 0
    assert f"{found.cut} characters" in html_page(found)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "mpnet"])
def test_other_vocabularies(tiny: BuildModel, family: str) -> None:
    model = tokprune_rt.load(tiny(family), policy=preset("quantile", layers=3, q=0.3))
    text = "The quick brown fox,  unbelievably \U0001f600 naive."
    found = explain_text(model, text)
    shown = "".join(t.gap + t.text for t in found.tokens)
    assert shown == text
    assert all(t.shown for t in found.tokens)
    assert png_bytes(found)


def test_page_is_escaped_and_complete(nasty: Explanation) -> None:
    text = html_page(nasty)
    assert "<script" not in text and "\x1b" not in text and "http://" not in text
    page = Page(text)
    assert "script" not in page.tags and page.tags.count("caption") == 2
    tokens = [row for row in page.rows if len(row) == 5]
    assert [row[1] for row in tokens] == [token.token for token in nasty.tokens]
    assert [row[3] for row in tokens] == [
        "stayed" if token.left is None else str(token.left) for token in nasty.tokens
    ]


def test_colours_can_be_read() -> None:
    for count in (1, 2, 6, 24):
        colours = list(layer_colours(range(count)).values())
        levels = [luminance(colour) for colour in colours]
        assert levels == sorted(levels, reverse=True) and len(set(colours)) == count
        for colour, level in zip(colours, levels, strict=True):
            other = 1.0 if ink(colour) == "#ffffff" else 0.0
            high, low = max(level, other), min(level, other)
            assert (high + 0.05) / (low + 0.05) >= 4.5, hex_colour(colour)


def test_picture_has_every_token(nasty: Explanation) -> None:
    for columns in (10, 40, 92):
        pieces = list(lay_out(nasty, columns))
        assert all(piece.column + piece.width <= columns for piece in pieces)
        for token in nasty.tokens:
            mine = [piece.text for piece in pieces if piece.token is token]
            assert "".join(mine) == token.shown.replace("\x1b", "\ufffd")
    places = [(p.line, p.column + c) for p in pieces for c in range(p.width)]
    assert len(places) == len(set(places))


def test_files(minilm_folder: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "a.html", tmp_path / "a.png"
    arguments = ["explain", MINILM, NASTY, "--preset", "quantile", "--set", "q=0.25", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--html", str(page), "--png", str(picture)])
    assert result.exit_code == 0, result.stderr
    found = explain_text(pruned(q=0.25), NASTY)
    assert json.loads(result.stdout) == json.loads(json.dumps(found.to_dict()))
    assert page.read_text(encoding="utf-8") == html_page(found)
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 1000 and height > 500
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "a.png"]


def test_a_text_that_loses_nothing() -> None:
    arguments = ["explain", MINILM, "one two three", "--policy", "calibrated"]
    found = CliRunner().invoke(app, arguments).stdout
    assert "lets nothing of this text leave" in found and "left at layer" not in found


def test_text_from_standard_input(minilm_folder: Path) -> None:
    arguments = ["explain", MINILM, "-", "--preset", "lat"]
    result = CliRunner().invoke(app, arguments, input="one two three\n")
    assert result.exit_code == 0 and "[CLS]" in result.stdout and "\x1b" not in result.stdout
