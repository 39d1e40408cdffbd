"""`tokprune info`: this machine, or a model and its policy."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokprune_rt.cli.console import note_line, out, printable, trimmed
from tokprune_rt.cli.options import (
    IsaOption,
    PolicyOption,
    PrecisionOption,
    PresetOption,
    ProfileOption,
    SetOption,
    ThreadsOption,
    load_model,
    policy_label,
)
from tokprune_rt.cli.words import policy_words

if TYPE_CHECKING:
    from tokprune_rt.model import Model

_ISA_VARIABLE = "TOKPRUNE_ISA"
_MANY = 12


def info(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A model folder, an installed weight package or a hub id.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    policy: PolicyOption = None,
    preset: PresetOption = None,
    settings: SetOption = None,
    profile: ProfileOption = None,
    threads: ThreadsOption = None,
    isa: IsaOption = None,
    precision: PrecisionOption = "auto",
) -> None:
    """Show what this machine offers, or what a model is and what its policy does.

    [bold]Examples[/bold]

      tokprune info
      tokprune info all-MiniLM-L6-v2 --preset top-p --set p=0.9
    """
    from tokprune_rt import _core

    if model is None:
        if policy or preset or settings or profile:
            raise ValueError("a policy is shown together with a model; give a MODEL")
        if isa:
            _core.resolve_precision("auto", isa)  # raises ValueError for one that is not there
        facts = machine_facts() | ({"isa": isa} if isa else {})
        forced = os.environ.get(_ISA_VARIABLE)
        if forced and forced not in facts["isa_levels"]:
            note_line(
                f"{_ISA_VARIABLE} is {forced!r}, which is no level of this machine: no model will "
                "load"
            )
    else:
        loaded = load_model(
            model,
            policy=policy,
            preset=preset,
            settings=settings,
            threads=threads,
            isa=isa,
            precision=precision,
        )
        facts = model_facts(loaded, profile)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    _print_facts(facts)


def machine_facts() -> dict[str, Any]:
    """Version, processor, instruction sets and threads."""
    import tokprune_rt
    from tokprune_rt import _core
    from tokprune_rt.policy import PRESETS

    levels = list(_core.isa_levels())
    forced = os.environ.get(_ISA_VARIABLE)
    return {
        "version": tokprune_rt.__version__,
        "python": platform.python_version(),
        "processor": processor_name(),
        "cpus": os.cpu_count(),
        "threads": _core.default_threads(),
        "isa_levels": levels,
        "isa": forced if forced in levels else levels[-1],
        "presets": list(PRESETS),
    }


def processor_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def model_facts(model: Model, profile: str | None) -> dict[str, Any]:
    """Architecture, sizes, limits and policy of a loaded model; numbers in bytes and tokens.

    Raises ValueError for an unknown profile.
    """
    from tokprune_rt.policy import DEFAULT

    config = model.config
    if profile not in (None, DEFAULT) and profile not in model.profiles:
        known = ", ".join(model.profiles)
        raise ValueError(f"unknown profile {profile!r}; this model has: {known}")
    pooling = [*model.setup.pooling, *(f"dense {d.out_features}" for d in model.setup.dense)]
    pooling += ["normalize"] if model.setup.normalize else []
    facts: dict[str, Any] = {
        "model": model.name,
        "folder": str(model.folder),
        "architecture": config.architecture,
        "task": model.task,
        "layers": config.layers,
        "hidden": config.hidden,
        "heads": config.heads,
        "intermediate": config.intermediate,
        "activation": config.activation,
        "vocabulary": config.vocab_size,
        "positions": config.max_positions,
        "max_tokens": model.max_seq_length,
        "precision": model.precision,
        "weight_bytes": model.weight_bytes,
        "dimension": model.dimension,
        "pooling": pooling,
        "labels": list(model.labels) if config.head != "none" else [],
        "prompts": sorted(model.prompts),
        "isa": model.isa,
        "threads": model.threads,
        "policy": policy_label(model.policy),
        "policy_hash": model.policy_hash,
        "profiles": model.profiles,
        "profile": profile,
        "pruning": [] if model.policy is None else policy_words(model.policy, profile),
    }
    return facts


def _shown(key: str, value: Any) -> str:
    if key == "weight_bytes":
        return f"{value / 1e6:,.1f} MB, packed"
    if key == "pruning":
        return "\n".join(value)
    if isinstance(value, list):
        some = [*value[:_MANY], f"... ({len(value)})"] if len(value) > _MANY else value
        return ", ".join(map(str, some))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_facts(facts: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        if value is not None and value != []:
            name = "weights" if key == "weight_bytes" else key.replace("_", " ")
            table.add_row(name, Text(printable(_shown(key, value))))
    with trimmed(out()) as console:
        console.print(table)
