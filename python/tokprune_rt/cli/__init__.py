"""The `tokprune` command line.

Needs the extra ``cli``; nothing here is imported by the library itself.
"""

from __future__ import annotations

import importlib.util
import sys

from tokprune_rt.errors import how_to_install

__all__ = ["main"]


def main() -> None:
    """Entry point of the `tokprune` command."""
    missing = [name for name in ("typer", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"The tokprune command needs {' and '.join(missing)}. Install the command line with:\n"
            f"    {how_to_install('cli')}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    try:
        from tokprune_rt.cli.app import run

        run()
    except KeyboardInterrupt:
        # Outside of a command, for example during the imports.
        raise SystemExit(130) from None
