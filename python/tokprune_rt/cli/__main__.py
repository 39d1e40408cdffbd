"""``python -m tokprune_rt.cli`` is the `tokprune` command."""

from tokprune_rt.cli import main

main()
