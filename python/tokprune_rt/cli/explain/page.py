"""An explanation as one HTML file that needs nothing else."""

from __future__ import annotations

from html import escape
from itertools import groupby

from tokprune_rt.cli.console import printable
from tokprune_rt.cli.explain.data import Explanation, TokenFate
from tokprune_rt.cli.explain.palette import hex_colour, ink, layer_colours
from tokprune_rt.cli.explain.terminal import notes, summary_line

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1b1f; --soft: #5d5b66; --paper: #ffffff;
  --line: #d9d7e0; --bar: #b9b6c6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ebe9f2; --soft: #a8a5b5; --paper: #17161b; --line: #3a3843; --bar: #5a5768; }
}
body { margin: 2rem auto; padding: 0 1.25rem; max-width: 60rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
.soft, caption { color: var(--soft); }
.text { font-size: 1.1rem; line-height: 2; white-space: pre-wrap; overflow-wrap: anywhere; }
.t { border-radius: .2rem; padding: .1rem .12rem; }
.joined { border-top-left-radius: 0; border-bottom-left-radius: 0; padding-left: 0; }
.kept { font-weight: 600; }
.special { font-family: ui-monospace, monospace; font-size: .85em; font-weight: 400; }
.key { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; margin: .75rem 0; }
.key .t { min-width: 1.4rem; text-align: center; }
table { border-collapse: collapse; margin: .5rem 0; }
caption { text-align: left; padding-bottom: .35rem; }
th, td { padding: .2rem .75rem .2rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.code { font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.bar { display: inline-block; height: .75rem; background: var(--bar); border-radius: .15rem; }
summary { cursor: pointer; }
"""


def html_page(explanation: Explanation) -> str:
    """The whole page; every text from outside is escaped."""
    colours = layer_colours(explanation.pruning_layers)
    rules = "".join(
        f".l{layer} {{ background: {hex_colour(c)}; color: {ink(c)}; }}\n"
        for layer, c in colours.items()
    )
    profile = f", profile {explanation.profile}" if explanation.profile is not None else ""
    title = f"{explanation.model}, policy {explanation.policy}{profile}"
    remarks = [str(summary_line(explanation)) + ".", *notes(explanation)]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{_safe(title)}</title>
<style>{_STYLE}{rules}</style>
</head>
<body>
<main>
<h1>Which token left at which layer</h1>
<p class="soft">{_safe(title)}</p>
{_key(explanation)}
<div class="text">{_text(explanation)}</div>
<p>{_safe(" ".join(remarks))}</p>
<h2>Layers</h2>
{_layers(explanation)}
<h2>Policy</h2>
{_policy(explanation)}
<h2>Tokens</h2>
{_tokens(explanation)}
</main>
</body>
</html>
"""


def _safe(text: str) -> str:
    return escape(printable(text), quote=True)


def _fate(token: TokenFate) -> str:
    return "stayed to the end" if token.left is None else f"left at layer {token.left}"


def _text(explanation: Explanation) -> str:
    parts = []
    before: TokenFate | None = None
    for left, run in groupby(explanation.tokens, key=lambda token: token.left):
        for token in run:
            apart = token.special or (before is not None and before.special)
            gap = token.gap or (" " if apart and before is not None else "")
            joined = before is not None and not gap and before.left == left
            classes = [
                "t",
                "kept" if left is None else f"l{left}",
                *(["special"] if token.special else []),
                *(["joined"] if joined else []),
            ]
            score = "" if token.score is None else f", score {token.score:.4g}"
            parts.append(
                f'{_safe(gap)}<span class="{" ".join(classes)}" '
                f'title="{_safe(token.token)}: {_fate(token)}{score}">{_safe(token.shown)}</span>'
            )
            before = token
    return "".join(parts)


def _key(explanation: Explanation) -> str:
    if not explanation.pruning_layers:
        return '<p class="key">Nothing is pruned: every token stays to the end.</p>'
    marks = "".join(f'<span class="t l{n}">{n}</span>' for n in explanation.pruning_layers)
    return (
        f'<p class="key"><span>Left at layer</span>{marks}'
        '<span class="kept">bold: stayed to the end</span></p>'
    )


def _layers(explanation: Explanation) -> str:
    left = explanation.left_at
    count = max(len(explanation.tokens), 1)
    rows = []
    for layer, alive in enumerate(explanation.kept):
        gone = str(left[layer]) if layer in left else "-"
        mark = f'<span class="t l{layer}">{layer}</span>' if layer in left else str(layer)
        rows.append(
            f'<tr><th scope="row">{mark}</th><td class="n">{gone}</td><td class="n">{alive}</td>'
            f'<td><span class="bar" style="width: {12 * alive / count:.2f}rem"></span></td></tr>'
        )
    return (
        "<table><caption>Layers count from 0, as in the policy file.</caption>"
        '<thead><tr><th scope="col">Layer</th><th scope="col" class="n">Left</th>'
        '<th scope="col" class="n">Stay</th><td></td></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _policy(explanation: Explanation) -> str:
    if not explanation.words:
        return "<p>None: the model runs dense.</p>"
    items = "".join(f"<li>{_safe(line)}</li>" for line in explanation.words)
    return f'<ul>{items}</ul><p class="soft">Hash {_safe(explanation.policy_hash)}</p>'


def _tokens(explanation: Explanation) -> str:
    rows = []
    for token in explanation.tokens:
        fate = "stayed" if token.left is None else str(token.left)
        score = "" if token.score is None else f"{token.score:.4g}"
        rows.append(
            f'<tr><td class="n">{token.position}</td><td class="code">{_safe(token.token)}</td>'
            f'<td class="code">{_safe(token.text)}</td><td>{fate}</td>'
            f'<td class="n">{score}</td></tr>'
        )
    heads = "".join(
        f'<th scope="col"{cls}>{name}</th>'
        for name, cls in (
            ("Position", ' class="n"'),
            ("Token", ""),
            ("Text", ""),
            ("Left at layer", ""),
            ("Score", ' class="n"'),
        )
    )
    return (
        "<table><caption>Every token of the input. The score is the one at the layer where the "
        "token left; for one that stayed, its last.</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
