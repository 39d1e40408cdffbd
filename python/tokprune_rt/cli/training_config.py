"""Options of a training command from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the defaults of the command's options.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no YAML mapping, or has an unknown option or a value that the option does
            not take.
    """
    if path is None:
        return None
    options = {
        name.removeprefix("--"): option
        for option in context.command.params
        for name in (*option.opts, *option.secondary_opts)
        if name.startswith("--") and name not in ("--config", "--help")
    }
    values: dict[str, Any] = {}
    for name, given in _mapping(path).items():
        if name not in options:
            raise ValueError(f"{path}: unknown option {name!r}; known: {', '.join(options)}")
        option = options[name]
        is_flag = bool(getattr(option, "is_flag", False))
        many = bool(getattr(option, "multiple", False))
        listed = given if many and isinstance(given, list) else [given]
        for value in listed:
            if not isinstance(value, str | int | float) or isinstance(value, bool) != is_flag:
                expected = "true or false" if is_flag else "a text or a number"
                expected += ", or a list of them" if many else ""
                raise ValueError(f"{path}: {name}: expected {expected}, found {given!r}")
        value = [str(each) for each in listed] if many else given
        if f"--{name}" in option.secondary_opts:  # as --fp32 is of --bf16
            value = not value
        try:
            option.process_value(context, value if many else str(value))
        except typer.BadParameter as error:
            raise ValueError(f"{path}: {name}: {error.message}") from error
        assert option.name is not None
        values[option.name] = value
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected options by name, found {type(found).__name__}")
    return {str(name): value for name, value in found.items()}
