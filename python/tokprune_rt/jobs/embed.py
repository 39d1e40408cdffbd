"""`embed_file`: a file of texts to a file of vectors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokprune_rt import __version__
from tokprune_rt.files import check_target
from tokprune_rt.jobs.reading import Snapshot, Source, scan
from tokprune_rt.jobs.work import Done, Job, Work, finished
from tokprune_rt.jobs.writing import Form, check_output, make_form
from tokprune_rt.model import Model
from tokprune_rt.outputs import FloatArray
from tokprune_rt.policy import DEFAULT

Progress = Callable[[int, int], object]
"""Called with the rows that are finished and the rows that there are."""

_Encode = Callable[[list[str]], FloatArray]

# Of every kind that an edited tokenizer or a cut at another length would change.
_PROBE = (
    "",
    "The quick brown fox jumps over 13 lazy dogs, doesn't it?",
    "\u00dcber caf\u00e9s \u4f60\u597d\u4e16\u754c \u0440\u0443\u0441 \U0001f600 x_y@z.org",
    " ".join(f"word{number} of a long text" for number in range(2000)),
)


@dataclass(frozen=True)
class Embedded:
    """A finished job.

    Attributes:
        output: the file of vectors.
        sidecar: the JSON file beside it that says what made it.
        rows: vectors in the file.
        dimension: numbers of a vector.
        found: rows that earlier runs of the same job had finished.
    """

    output: Path
    sidecar: Path
    rows: int
    dimension: int
    found: int


def embed_file(
    model: Model,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    column: str = "text",
    keep: Sequence[str] = (),
    normalize_embeddings: bool = False,
    prompt_name: str | None = None,
    profile: str | None = None,
    batch_size: int = 32,
    chunk: int = 1024,
    on_progress: Progress | None = None,
) -> Embedded:
    """Embed every text of a file, in bounded memory, going on where an earlier run stopped.

    The vectors are those of `Model.encode`, bit for bit. Until the job is finished, everything is
    in a hidden folder beside the output; the same call goes on after the last finished chunk and
    ends with the same bytes, however often it was interrupted. A finished job is left as it is.

    Args:
        model: a model with pooling.
        source: ``.txt`` (a text a line, an empty line is an empty text), ``.jsonl``, ``.ndjson``,
            ``.csv`` or ``.tsv`` with a header, all of them also with ``.gz`` at the end, or
            ``.parquet``. It is read once for errors before the work begins.
        output: ``.npy``, float32 [rows, dimension]; or ``.parquet`` with the columns ``row``
            (int64, from 0), those kept, and ``vector`` (float32 [dimension]), a chunk a row group.
            ``OUTPUT.json`` beside it says what made it.
        column: where the text is, in every format but ``.txt``.
        keep: columns of the input to copy into a ``.parquet``.
        normalize_embeddings, prompt_name, profile, batch_size: as in `Model.encode`.
        chunk: texts between two notes of what is finished; fewer when they are very long.
        on_progress: called at the start and after every chunk.

    Raises:
        FileNotFoundError: there is no such input or folder.
        FileExistsError: the output exists, and this job did not make it.
        BlockingIOError: another process is working on the same output.
        ImportError: Parquet without pyarrow.
        ValueError: an ending that is not supported; a row without a text, named by its line; no
            rows at all; an unfinished job for this output that differs, with what differs; or as
            `Model.encode`.
    """
    check_chunk(chunk)
    texts, target = check_paths(source, output, column, keep)

    def encode(items: list[str]) -> FloatArray:
        return model.encode(
            items, normalize_embeddings, batch_size, profile, prompt_name=prompt_name
        )

    job: dict[str, Any] = {
        "model": model.name,
        "model_fingerprint": _fingerprint(encode),
        "policy_hash": model.policy_hash,
        "profile": None if profile == DEFAULT else profile,
        "precision": model.precision,
        "dimension": model.dimension,
        "normalized": bool(normalize_embeddings) or model.setup.normalize,
        "prompt_name": prompt_name,
        "input_format": texts.format,
        "input_sha256": "",
        "column": column,
        "keep": list(texts.keep),
        "chunk": chunk,
    }
    return _run(encode, job, texts, target, on_progress or (lambda done, total: None))


def check_paths(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    column: str,
    keep: Sequence[str],
) -> tuple[Source, Path]:
    """The input, and the output without links; raises what `embed_file` does for their names."""
    columns = tuple(keep)
    target = Path(output).resolve()
    check_output(target, columns)
    check_target(target)
    return Source(Path(source), column, columns), target


def check_chunk(chunk: int) -> None:
    """ValueError or TypeError for a ``chunk`` that is no positive integer."""
    if isinstance(chunk, bool) or not isinstance(chunk, int):
        raise TypeError(f"chunk must be an int, got {type(chunk).__name__}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")


def _fingerprint(encode: _Encode) -> str:
    """Tells models apart by what they compute: weights, tokenizer, policy, arithmetic."""
    return hashlib.sha256(encode(list(_PROBE)).tobytes()).hexdigest()


def _run(
    encode: _Encode, job: dict[str, Any], source: Source, output: Path, report: Progress
) -> Embedded:
    work = Work(output)
    sidecar = output.with_name(f"{output.name}.json")
    with work.held():
        snapshot = Snapshot(source)
        job["input_sha256"] = snapshot.sha256
        rows = finished(output, sidecar, job)
        if rows is not None:
            work.remove()  # of a process that was killed just before
            return Embedded(output, sidecar, rows, job["dimension"], rows)
        done = work.read(job)
        total, types = scan(source, job["chunk"])
        form = make_form(output, source, total, types, job["dimension"])
        found = 0 if done is None else done.rows
        report(found, total)
        _embed(encode, job, snapshot, form, work, done, lambda rows: report(rows, total))
        facts = {**job, "rows": total, "version": __version__}
        work.publish(form.finish(work.data, facts), sidecar, facts)
    return Embedded(output, sidecar, total, job["dimension"], found)


def _embed(
    encode: _Encode,
    job: Job,
    source: Snapshot,
    form: Form,
    work: Work,
    done: Done | None,
    report: Callable[[int], object],
) -> None:
    with open(work.data, "ab") as file:

        def append(content: Any, rows: int) -> Done:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            now = Done(rows, file.tell())
            work.write(job, now)
            return now

        if done is None:
            file.truncate(0)
            done = append(form.head(), 0)
        else:
            file.truncate(done.size)
            file.seek(done.size)
        for part in source.chunks(done.rows, job["chunk"]):
            vectors = encode(part.texts)
            done = append(form.body(done.rows, part, vectors), done.rows + len(part.texts))
            report(done.rows)
