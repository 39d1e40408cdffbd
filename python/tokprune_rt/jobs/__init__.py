"""Long jobs: the texts of a file, however large, to a file of vectors.

`embed_file` streams its input, so that the memory does not grow with it, goes on where it was
interrupted, and shows its result only when it is complete.
"""

from __future__ import annotations

from tokprune_rt.jobs.embed import Embedded, embed_file

__all__ = ["Embedded", "embed_file"]
