"""`tokprune explain`: which token left at which layer."""

from tokprune_rt.cli.explain.command import explain

__all__ = ["explain"]
