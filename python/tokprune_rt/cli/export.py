"""`tokprune export`: a model folder that carries its pruning policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokprune_rt.cli.console import out, print_list, trimmed
from tokprune_rt.cli.options import PolicyOption, PresetOption, SetOption, policy_source
from tokprune_rt.cli.words import policy_words


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A model folder, an installed weight package or a hub id.",
            show_default=False,
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="DST", help="The folder to write; absent or empty.", show_default=False
        ),
    ],
    policy: PolicyOption = None,
    preset: PresetOption = None,
    settings: SetOption = None,
) -> None:
    """Copy a model together with a pruning policy.

    The copy loads here pruned, and everywhere else, where its
    token_policy.json is not read, as the dense model that it was. The folder
    appears complete or not at all.

    [bold]Examples[/bold]

      tokprune export all-MiniLM-L6-v2 ./minilm-pruned --preset spatten
      tokprune export ./finetuned ./finetuned-ltp --policy ltp.json
    """
    import tokprune_rt
    from tokprune_rt.policy import load_policy, policy_hash

    folder = tokprune_rt.export(
        source, target, policy=policy_source(source, policy, preset, settings)
    )
    written = load_policy(folder)
    with trimmed(out()) as console:
        console.print(f"wrote {folder}, policy {policy_hash(written)[:12]}", markup=False)
        print_list(console, policy_words(written))
