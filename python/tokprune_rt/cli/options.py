"""Options that several commands share, and what they mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tokprune_rt.model import Model
    from tokprune_rt.policy import Policy, PolicySource

_PRUNING = "Pruning"
_RUNTIME = "Runtime"

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model folder, an installed weight package or a hub id.",
        show_default=False,
    ),
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="auto|off|calibrated|PATH",
        help="auto (default): the model folder's own policy, if it has one; off: dense; "
        "calibrated: the one that comes with this package; or a policy file, or a folder with one.",
        rich_help_panel=_PRUNING,
        show_default=False,
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="A published method instead of a policy file: ltp, top, topk, power-bert, spatten, "
        "lat, quantile, top-p, entropy, static-idf, transkimmer, adapler, tr-bert, ad-tp, tome, "
        "pitome, ltmp, mid-pool, jasper-pool.",
        rich_help_panel=_PRUNING,
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A parameter of the preset, repeatable. VALUE is JSON, a word, or @FILE (.json or "
        ".npy).",
        rich_help_panel=_PRUNING,
        show_default=False,
    ),
]
ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        help="A profile of the policy; off is always there and runs dense.",
        rich_help_panel=_PRUNING,
        show_default=False,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        help="Worker threads; default: what this machine allows.",
        rich_help_panel=_RUNTIME,
        show_default=False,
    ),
]
IsaOption = Annotated[
    str | None,
    typer.Option(
        "--isa",
        metavar="NAME",
        help="Instruction set; default: TOKPRUNE_ISA or the best one. See tokprune info.",
        rich_help_panel=_RUNTIME,
        show_default=False,
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="auto|fp32|bf16|int8|bf16x3",
        help="Arithmetic of the encoder layers; auto never gives up quality.",
        rich_help_panel=_RUNTIME,
    ),
]
BatchSizeOption = Annotated[
    int,
    typer.Option(
        "--batch-size",
        metavar="N",
        help="Texts of usual length per batch; bounds the memory.",
        rich_help_panel=_RUNTIME,
    ),
]
NormalizeOption = Annotated[
    bool, typer.Option("--normalize", help="Scale every embedding to length 1.")
]
PromptNameOption = Annotated[
    str | None,
    typer.Option(
        "--prompt-name",
        metavar="NAME",
        help="The model's prompt to put before every text.",
        show_default=False,
    ),
]
TruncateOption = Annotated[
    bool,
    typer.Option("--truncate/--no-truncate", help="Cut over-long texts, or refuse them."),
]


def load_model(
    name: str,
    *,
    policy: str | None = None,
    preset: str | None = None,
    settings: Sequence[str] | None = None,
    threads: int | None = None,
    isa: str | None = None,
    precision: str = "auto",
) -> Model:
    """The model under the policy that the options stand for."""
    import tokprune_rt

    source = policy_source(name, policy, preset, settings)
    return tokprune_rt.load(name, policy=source, precision=precision, threads=threads, isa=isa)


def policy_source(
    model: str, policy: str | None, preset: str | None, settings: Sequence[str] | None
) -> PolicySource:
    """What `load` and `export` take as a policy.

    Raises ValueError when the options contradict each other or a setting cannot be read.
    """
    if preset is None:
        if settings:
            raise ValueError("--set gives parameters of a preset; add --preset NAME")
        return "auto" if policy is None else policy
    if policy is not None:
        raise ValueError("give either --policy or --preset, not both")
    from tokprune_rt.loader import describe_model, resolve

    config, _ = describe_model(resolve(model))
    return build_preset(preset, config.layers, parse_settings(settings or ()))


def build_preset(name: str, layers: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """A preset's policy document; ValueError lists the parameters for an unknown one."""
    from tokprune_rt.policy import preset

    try:
        return preset(name, **({"layers": layers} | parameters))
    except TypeError as error:
        raise ValueError(str(error)) from error


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``["q=0.2", "locations=[1,2]", "action=drop"]`` -> a dict; a repeated key is refused."""
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key.isidentifier():
            raise ValueError(f"--set {setting}: write KEY=VALUE, for example --set q=0.2")
        if key in parsed:
            raise ValueError(f"--set {key} is given twice")
        parsed[key] = _value(key, value.strip())
    return parsed


def _value(key: str, value: str) -> Any:
    if value.startswith("@"):
        return _file_value(key, Path(value[1:]))
    try:
        return json.loads(value)
    except ValueError:
        pass
    if value[:1] in ("[", "{", '"'):
        raise ValueError(f"--set {key}: {value} is not valid JSON")
    return value


def _file_value(key: str, path: Path) -> Any:
    if path.suffix == ".npy":
        import numpy as np

        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"--set {key}: {path} is not a .npy file: {error}") from error
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--set {key}: {path} is not valid JSON: {error}") from error


def policy_label(policy: Policy | None, profile: str | None = None) -> str:
    """A short name of a policy and its profile: its own, its method's, or the start of its hash."""
    if policy is None:
        return "off"
    if profile is not None:
        return f"{policy_label(policy)}, profile {profile}"
    if policy.name is not None:
        return policy.name
    if isinstance(policy.provenance, dict) and isinstance(policy.provenance.get("method"), str):
        return str(policy.provenance["method"])
    from tokprune_rt.policy import policy_hash

    return policy_hash(policy)[:12]
