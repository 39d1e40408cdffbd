"""Put the tables of reports of `tokprune bench --json` into the README beside this script."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokprune_rt.bench import BenchReport

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "reports", type=Path, nargs="+", help="JSON files that tokprune bench wrote"
    )
    arguments = parser.parse_args()
    tables = "\n\n".join(BenchReport.load_json(path).markdown() for path in arguments.reports)
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{README} lacks the marks {BEGIN} and {END}")
    part = f"{BEGIN}\n{tables}{END}"
    README.write_text(before + part + after, encoding="utf-8")


if __name__ == "__main__":
    main()
