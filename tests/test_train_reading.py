"""Labelled texts, tagged sentences, questions and data sets; what is said of bad files."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tokprune_rt.train import Columns, Examples, Question, Questions, Sentences, read_examples

WANTED = Sentences(
    [["Ada", "lives", "in", "New York"], ["Hm"]], [["B-PER", "O", "O", "B-LOC"], ["O"]]
)
CONTEXT = "Ada wrote the first program."
SQUAD = [
    Question("a", "Who wrote it?", CONTEXT, (("Ada", 0),)),
    Question("b", "Who drank it?", CONTEXT, ()),
]


def squad_file(path: Path, *entries: dict[str, Any], context: Any = CONTEXT) -> Path:
    paragraphs = [{"context": context, "qas": list(entries)}]
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    return path


def entry(**changes: Any) -> dict[str, Any]:
    answers = [{"text": "Ada", "answer_start": 0}]
    return {"id": "a", "question": "Who wrote it?", "answers": answers} | changes


def test_tagged_sentences(tmp_path: Path) -> None:
    """First and last column; empty lines, also of blanks, end a sentence; tabs protect blanks."""
    text = (
        "-DOCSTART- -X- O O\n\nAda\tNNP\tB-PER\nlives\tVBZ\tO\nin\tIN\tO\nNew York\tNNP\tB-LOC\n"
        "\t\n\nHm\tUH\tO"
    )
    (tmp_path / "t.conll").write_text(text)
    with gzip.open(tmp_path / "t.txt.gz", "wt") as file:
        file.write(text)
    for name in ("t.conll", "t.txt.gz"):
        found = read_examples(tmp_path / name, Columns())
        assert found == WANTED
        assert [place.rpartition(":")[2] for place in found.places] == ["3", "9"]
    (tmp_path / "b.txt").write_text("Ada NNP B-PER\nlives O\n")
    assert read_examples(tmp_path / "b.txt", Columns()) == Sentences(
        [["Ada", "lives"]], [["B-PER", "O"]]
    )
    (tmp_path / "c.txt").write_text(
        "# id 1 domain=en\n# _ _ O\nAda _ _ B-PER\n\n# text = Hm\nHm _ _ O\n"
    )
    assert read_examples(tmp_path / "c.txt", Columns()) == Sentences(
        [["#", "Ada"], ["Hm"]], [["O", "B-PER"], ["O"]]
    )
    rows = zip(WANTED.words, WANTED.tags, strict=True)
    lines = [json.dumps({"tokens": words, "tags": tags}) for words, tags in rows]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    assert read_examples(tmp_path / "t.jsonl", Columns("tokens", "tags")) == WANTED


def test_questions(tmp_path: Path) -> None:
    impossible = entry(id="b", question="Who drank it?", is_impossible=True)
    path = squad_file(tmp_path / "q.json", entry(is_impossible=False), impossible)
    assert read_examples(path, Columns()) == Questions(SQUAD)
    rows = [
        {
            "id": q.id,
            "question": q.question,
            "context": q.context,
            "answers": {
                "text": [a for a, _ in q.answers],
                "answer_start": [s for _, s in q.answers],
            },
        }
        for q in SQUAD
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_examples(tmp_path / "q.jsonl", Columns()) == Questions(SQUAD)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.conll",
            "Ada\tB-PER\nlives\n",
            r"t\.conll:2: expected a word and its tag, found 'l",
        ),
        ("t.conll", "Ada\t\n", r"t\.conll:1: expected a word and its tag"),
        ("t.conll", "\n\n", r"t\.conll: no sentences"),
        ("t.jsonl", '{"tokens": ["a"]}', r"t\.jsonl:1: no column 'tags'; found: 'tokens'"),
        (
            "t.jsonl",
            '{"tokens": ["a", "b"], "tags": ["O"]}',
            r"t\.jsonl:1: 2 words and 1 tags",
        ),
        (
            "t.jsonl",
            '{"tokens": ["a"], "tags": ["O"]}\n{"tokens": ["a"], "tags": [3]}',
            r"t\.jsonl:2: column 'tags': expected a list of texts",
        ),
        ("t.jsonl", '{"tokens": [], "tags": []}', "no sentence up to here has a word"),
        (
            "t.jsonl",
            '{"tokens": "a b", "tags": ["x", "y"]}',
            r"t\.jsonl:1: column 'tags' holds several values; a text has one label",
        ),
        ("q.json", "{", r"q\.json: not JSON"),
        ("q.json", "[]", r"q\.json: \$: expected an object, found list"),
        ("q.json", '{"version": "1"}', r"q\.json: \$: no 'data'; found: 'version'"),
        ("q.json", '{"data": []}', r"q\.json: no questions"),
        (
            "q.json",
            '{"data": [{"paragraphs": [{"context": "c", "qas": [1]}]}]}',
            r"\$\.data\[0\]\.paragraphs\[0\]\.qas\[0\]: expected an object, found 1",
        ),
        (
            "q.json",
            '{"data": [{"paragraphs": [{"context": 3, "qas": []}]}]}',
            r"\$\.data\[0\]\.paragraphs\[0\]: 'context': expected str, found int",
        ),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_examples(tmp_path / name, Columns("tokens", "tags"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"answers": [{"text": "Ada", "answer_start": 4}]},
            r"qas\[0\]: answer_start 4: found 'wro' there, expected 'Ada'",
        ),
        (
            {"answers": [{"text": "Ada", "answer_start": -1}]},
            "answer_start -1: found '' there, expected 'Ada'",
        ),
        ({"answers": [{"text": "Ada"}]}, "no 'answer_start'; found: 'text'"),
        ({"answers": [{"text": "Ada", "answer_start": "0"}]}, "expected int, found str"),
        ({"answers": [{"text": "Ada", "answer_start": True}]}, "expected int, found bool"),
        ({"answers": {"text": ["Ada"], "answer_start": []}}, "1 answers and 0 places"),
        ({"answers": 3}, "'answers': expected a list, found int"),
        ({"question": " "}, "question is empty"),
        ({"question": None}, "'question': expected str, found NoneType"),
    ],
)
def test_bad_questions_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = squad_file(tmp_path / "q.json", entry(**changes))
    with pytest.raises(ValueError, match=message) as caught:
        read_examples(path, Columns())
    assert str(path) in str(caught.value)


def test_stored_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    tags = ["O", "B-PER", "B-LOC"]
    features = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(datasets.ClassLabel(names=tags)),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["bad", "good"]),
        }
    )
    columns = {
        "tokens": WANTED.words,
        "ner_tags": [[tags.index(tag) for tag in row] for row in WANTED.tags],
        "text": ["a", "b"],
        "label": [1, 0],
    }
    data = datasets.Dataset.from_dict(columns, features)
    data.save_to_disk(tmp_path / "one")
    assert read_examples(tmp_path / "one", Columns("tokens", "ner_tags")) == WANTED
    assert read_examples(tmp_path / "one", Columns()) == Examples(["a", "b"], ["good", "bad"])
    with pytest.raises(ValueError, match=r"one, row 0: no column 'tags'; found: 'tokens', 'ner"):
        read_examples(tmp_path / "one", Columns("tokens", "tags"))
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match=r"several splits; give one of .*two/train, .*two/test"):
        read_examples(tmp_path / "two", Columns())
    assert read_examples(tmp_path / "two" / "test", Columns("tokens", "ner_tags")) == WANTED
    unlabelled = datasets.Dataset.from_dict({**columns, "label": [1, -1]}, features)
    unlabelled.save_to_disk(tmp_path / "unlabelled")
    with pytest.raises(ValueError, match=r"row 1: column 'label': -1 is none of the 2 classes"):
        read_examples(tmp_path / "unlabelled", Columns())
    answers = [{"text": ["Ada"], "answer_start": [0]}, {"text": [], "answer_start": []}]
    asked = {"id": ["a", "b"], "question": [q.question for q in SQUAD], "answers": answers}
    squad = datasets.Dataset.from_dict({**asked, "context": [CONTEXT] * 2})
    squad.save_to_disk(tmp_path / "squad")
    assert read_examples(tmp_path / "squad", Columns()) == Questions(SQUAD)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: a folder, but not one that datasets' save_to"):
        read_examples(tmp_path / "empty", Columns())


class NotFoundError(Exception):
    """As the package raises it for a name that the hub does not have."""


class Rows(list[dict[str, Any]]):
    @property
    def features(self) -> dict[str, Any]:
        return {"label": SimpleNamespace(names=["bad", "good"])}


def test_named_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which call a name becomes; the package itself would need the hub."""
    calls: list[tuple[object, ...]] = []

    def load_dataset(name: str, config: str | None = None, *, split: str) -> Rows:
        calls.append((name, config, split))
        if name == "glue/sst2":
            raise NotFoundError(name)
        return Rows([{"text": "a", "label": 1}])

    errors = SimpleNamespace(DatasetNotFoundError=NotFoundError)
    package = SimpleNamespace(load_dataset=load_dataset, exceptions=errors)
    monkeypatch.setitem(sys.modules, "datasets", package)
    for name in ("hf:imdb:test", "hf:glue/sst2:train[:10]", "hf:nyu-mll/glue/sst2:train"):
        assert read_examples(name, Columns()) == Examples(["a"], ["good"])
    assert calls == [
        ("imdb", None, "test"),
        ("glue/sst2", None, "train[:10]"),
        ("glue", "sst2", "train[:10]"),
        ("nyu-mll/glue", "sst2", "train"),
    ]


def test_data_sets_need_a_package_and_a_split(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"hf:imdb: write hf:NAME\[/CONFIG\]:SPLIT"):
        read_examples("hf:imdb", Columns())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="data sets need: pip install datasets"):
        read_examples("hf:imdb:test", Columns())


def test_reading_tables(tmp_path: Path) -> None:
    columns = Columns("text", "label", "other")
    expected = Examples([("a b", "c"), ('say "d"', "e")], ["x", "y"])
    (tmp_path / "t.tsv").write_text('text\tother\tlabel\na b\tc\tx\nsay "d"\te\ty\n')
    (tmp_path / "t.csv").write_text('label,text,other\nx,a b,c\ny,"say ""d""",e\n')
    rows = [{"text": "a b", "other": "c", "label": "x"}]
    rows.append({"text": 'say "d"', "other": "e", "label": "y"})
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("t.tsv", "t.csv", "t.jsonl"):
        assert read_examples(tmp_path / name, columns) == expected
    long = "a" * 200_000
    (tmp_path / "long.TSV").write_text(f"\ufefftext\tlabel\r\n{long}\tx\r\n")
    assert read_examples(tmp_path / "long.TSV", Columns()) == Examples([long], ["x"])
    (tmp_path / "first.csv").write_text("\ufeff1,good\n0,bad\n")
    assert read_examples(tmp_path / "first.csv", Columns("1", "0")).labels == ["1", "0"]
    (tmp_path / "bare.tsv").write_text("gj04\t1\t\tIt rained.\n")
    assert read_examples(tmp_path / "bare.tsv", Columns("3", "1")) == Examples(
        ["It rained."], ["1"]
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", "sentence\tlabel\na\t0\n", r"t\.tsv:2: no column 'text'; found: 'sentence', "),
        ("t.tsv", "text\tlabel\na\n", r"t\.tsv:2: nothing in column 'label'"),
        ("t.jsonl", '{"text": "a", "label": null}', r"t\.jsonl:1: nothing in column 'label'"),
        ("t.csv", 'text,label\n"a\nb",x\na,\n', r"t\.csv:4: column 'label' is empty"),
        ("t.csv", "text,label\nHello, world,1\n", r"t\.csv, line 2: more cells than the header"),
        ("t.csv", 'text,label\n"good,1\nbad "x",0\n', r"t\.csv, line 3: .*expected after"),
        ("t.tsv", b"text\tlabel\ncaf\xe9\tx\n", r"t\.tsv, line 2: not UTF-8 text"),
        ("t.csv.gz", gzip.compress(b"text,label\na,b\n", mtime=0)[:-9], "not a whole gzip file"),
        ("t.csv", "text,label\n", r"t\.csv: no rows"),
        ("t.jsonl", "{\n", r"t\.jsonl, line 1: not valid JSON"),
        ("t.jsonl", "[1]\n", r"t\.jsonl, line 1: found list, not a JSON object"),
        ("t.xml", "a\n", r"unknown kind of file; known: \.jsonl"),
    ],
)
def test_bad_tables_are_named(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message):
        read_examples(tmp_path / name, Columns("text", "label"))
