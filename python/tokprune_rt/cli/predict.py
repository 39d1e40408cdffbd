"""`tokprune predict`: what a model's head says about texts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from tokprune_rt.cli.console import note_line, progress_bar
from tokprune_rt.cli.files import json_line, output_file, read_records
from tokprune_rt.cli.options import (
    BatchSizeOption,
    IsaOption,
    ModelArgument,
    PolicyOption,
    PrecisionOption,
    PresetOption,
    ProfileOption,
    SetOption,
    ThreadsOption,
    TruncateOption,
    load_model,
)
from tokprune_rt.records import Record

if TYPE_CHECKING:
    from tokprune_rt.model import Model

_CHUNK = 256


class _Fields(NamedTuple):
    """Where a record has its text and the second text of a pair."""

    text: str
    pair: str


def predict(
    model: ModelArgument,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT", help="Texts; or read them with --input.", show_default=False
        ),
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            "--pair",
            metavar="TEXT",
            help="Second text of the pair: one for every TEXT, or a single one for all.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--input",
            "-i",
            metavar="FILE",
            help="Read the texts from a file, or from standard input with -.",
            show_default=False,
        ),
    ] = None,
    field: Annotated[
        str,
        typer.Option("--field", "--column", metavar="NAME", help="Field or column with the text."),
    ] = "text",
    pair_field: Annotated[
        str | None,
        typer.Option(
            "--pair-field",
            metavar="NAME",
            help="Field or column with the second text of a pair; default: text_pair, if there.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="text|jsonl|csv|tsv",
            help="Input format; default: by the file's name, else text.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FILE", help="A file; - for standard output."),
    ] = "-",
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            metavar="N",
            min=1,
            help="The N best labels or answers instead of the best one.",
            show_default=False,
        ),
    ] = None,
    raw_scores: Annotated[
        bool, typer.Option("--raw-scores", help="Logits, in the order of the model's labels.")
    ] = False,
    truncate: TruncateOption = True,
    policy: PolicyOption = None,
    preset: PresetOption = None,
    settings: SetOption = None,
    profile: ProfileOption = None,
    batch_size: BatchSizeOption = 32,
    threads: ThreadsOption = None,
    isa: IsaOption = None,
    precision: PrecisionOption = "auto",
) -> None:
    """Classify texts or pairs, tag their tokens or answer questions.

    Prints JSON lines. What they hold depends on the model's head: a label
    with its score, the entities of a text, or the answer to a question (TEXT)
    in its context (--pair). Other fields of a file's records are passed on.

    [bold]Examples[/bold]

      tokprune predict ./sentiment "What a film!" "Never again." --top-k 2
      tokprune predict ./nli "It rains." --pair "The street is wet."
      tokprune predict ./ner --input posts.jsonl --field body > entities.jsonl
    """
    if raw_scores and top_k is not None:
        raise ValueError("--raw-scores gives the logits of all labels; drop --top-k")
    for text in texts or []:
        if os.path.isfile(text):
            note_line(f"{text!r} is taken for a text; --input {text} reads the file")
    fields = _Fields(field, pair_field or "text_pair")
    records = _records(texts or [], pair or [], source, kind, fields)
    if pair_field and records and not any(pair_field in record for record in records):
        known = ", ".join(map(repr, records[0]))
        raise ValueError(f"no field {pair_field!r} for --pair-field, only {known}")
    loaded = load_model(
        model,
        policy=policy,
        preset=preset,
        settings=settings,
        threads=threads,
        isa=isa,
        precision=precision,
    )
    options: dict[str, Any] = {
        "profile": profile,
        "batch_size": batch_size,
        "truncate": truncate,
        "top_k": top_k,
        "raw_scores": raw_scores,
    }
    run, replaced = _task(loaded, options), set[str]()
    with output_file(output) as stream, progress_bar(len(records), "predicting") as advance:
        for first in range(0, len(records), _CHUNK):
            part = records[first : first + _CHUNK]
            for record, result in zip(part, run(part, fields), strict=True):
                replaced |= record.keys() & result.keys()
                stream.write(json_line({**record, **result}))
            stream.flush()
            advance(len(part))
    if replaced:
        names = ", ".join(map(repr, sorted(replaced)))
        note_line(f"what the records had as {names} gave way to what was predicted")


def _records(
    texts: list[str], pairs: list[str], source: str | None, kind: str | None, fields: _Fields
) -> list[Record]:
    if source is not None:
        if texts or pairs:
            raise ValueError("give either texts or --input, not both")
        records = read_records(source, kind, fields.text)
        for number, record in enumerate(records):
            # Empty cells of a table and null mean that there is no second text.
            if not isinstance(record.get(fields.pair, ""), str | None):
                found = type(record[fields.pair]).__name__
                raise ValueError(
                    f"{source}: record {number + 1}: {fields.pair!r} is {found}, not a text"
                )
        return records
    if not texts:
        raise ValueError("nothing to predict; give texts, or a file with --input")
    if kind is not None:
        raise ValueError("--format says how to read --input, which is missing")
    if len(pairs) not in (0, 1, len(texts)):
        raise ValueError(
            f"--pair is given {len(pairs)} times for {len(texts)} texts; give one for each or one "
            "for all"
        )
    if not pairs:
        return [{fields.text: text} for text in texts]
    seconds = pairs * len(texts) if len(pairs) == 1 else pairs
    return [{fields.text: a, fields.pair: b} for a, b in zip(texts, seconds, strict=True)]


def _task(model: Model, options: dict[str, Any]) -> Any:
    """The function (records, fields) -> results of the model's head."""
    runs = {
        "sequence-classification": _classify,
        "token-classification": _tag,
        "question-answering": _answer,
    }
    if model.task not in runs:
        raise ValueError(
            f"predict needs a model with a head; {model.name} is a {model.task} model "
            f"({model.config.architecture}), which tokprune encode serves"
        )
    if options["raw_scores"] and model.task != "sequence-classification":
        raise ValueError(f"--raw-scores is for classification; {model.name} does {model.task}")
    if options["top_k"] is not None and model.task == "token-classification":
        raise ValueError(f"--top-k is not for token classification, which {model.name} does")
    if model.task == "question-answering" and not options["truncate"]:
        raise ValueError("--no-truncate is not for question answering, which never cuts a context")
    chosen = runs[model.task]
    return lambda records, fields: chosen(model, records, fields, options)


def _inputs(records: list[Record], fields: _Fields) -> list[str | tuple[str, str]]:
    text, pair = fields
    return [(r[text], r[pair]) if r.get(pair) else r[text] for r in records]


def _classify(
    model: Model, records: list[Record], fields: _Fields, options: dict[str, Any]
) -> list[Record]:
    many = options["top_k"] is not None
    results = model.predict(
        _inputs(records, fields),
        options["profile"],
        top_k=options["top_k"] if many else "best",
        raw_scores=options["raw_scores"],
        batch_size=options["batch_size"],
        truncate=options["truncate"],
    )
    if options["raw_scores"]:
        return [{"logits": [float(str(value)) for value in row]} for row in results]
    return [{"labels": result} if many else result for result in results]


def _tag(
    model: Model, records: list[Record], fields: _Fields, options: dict[str, Any]
) -> list[Record]:
    if any(record.get(fields.pair) for record in records):
        raise ValueError("token classification takes single texts, not pairs")
    results = model.tag(
        [record[fields.text] for record in records],
        options["profile"],
        aggregation_strategy="simple",
        batch_size=options["batch_size"],
        truncate=options["truncate"],
    )
    return [{"entities": result} for result in results]


def _answer(
    model: Model, records: list[Record], fields: _Fields, options: dict[str, Any]
) -> list[Record]:
    results = []
    for record in records:
        if not record.get(fields.pair):
            raise ValueError(
                f"question answering needs a question and its context: give the context with "
                f"--pair or the field {fields.pair!r}"
            )
        answers = model.answer(
            record[fields.text],
            record[fields.pair],
            options["profile"],
            top_k=options["top_k"] or 1,
            batch_size=options["batch_size"],
        )
        many = options["top_k"] is not None
        listed = answers if isinstance(answers, list) else [answers]
        results.append({"answers": listed} if many else answers)
    return results
