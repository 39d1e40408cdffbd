"""What all integrations promise: light imports, errors that help, and a page that is true."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tokprune_rt.errors import how_to_install

ROOT = Path(__file__).parents[1]
MODULES = {
    "sentence_module": ("sentence_transformers", "sentence-transformers"),
    "langchain": ("langchain_core", "langchain"),
    "llama_index": ("llama_index", "llama-index"),
    "haystack": ("haystack", "haystack"),
    "chroma": ("chromadb", "chroma"),
    "sklearn": ("sklearn", "sklearn"),
}


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_a_missing_project_names_its_extra() -> None:
    code = (
        "import importlib, sys\n"
        f"modules = {MODULES!r}\n"
        "for project in [p for p, _ in modules.values()] + ['torch', 'transformers']:\n"
        "    sys.modules[project] = None\n"
        "import tokprune_rt\n"
        "from tokprune_rt.integrations import similarity, extras\n"
        "calls = {m: lambda m=m: importlib.import_module('tokprune_rt.integrations.' + m)\n"
        "         for m in modules}\n"
        "calls['torch'] = lambda: similarity.similarity('dot', [[1.0]], [[1.0]])\n"
        "for call in calls.values():\n"
        "    try: call()\n"
        "    except ImportError as error: print(error)\n"
        "    else: print('nothing')\n"
    )
    lines = run_python(code).splitlines()
    extras = [extra for _, extra in MODULES.values()] + ["sentence-transformers"]
    assert len(lines) == len(extras)
    for line, extra in zip(lines, extras, strict=True):
        assert line.endswith(f"is not installed: {how_to_install(extra)}")


def test_extras_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for _, extra in [*MODULES.values(), ("", "transformers"), ("", "integrations")]:
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_imports_are_light() -> None:
    """Naming the classes loads none of the projects they stand in for."""
    projects = [project for project, _ in MODULES.values()] + ["torch", "transformers"]
    code = (
        "import sys\n"
        "from tokprune_rt import CrossEncoder, SentenceTransformer, pipeline\n"
        f"print([name for name in {projects!r} if name in sys.modules])"
    )
    assert run_python(code) == "[]"


IMPORT = re.compile(
    r"`from (tokprune_rt[\w.]*|haystack_integrations[\w.]*tokprune) import ([\w, ]+)`"
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_page_imports_what_exists() -> None:
    page = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
    found = IMPORT.findall(page)
    assert len(found) >= 12
    missing = set()
    for module, names in found:
        try:
            loaded = importlib.import_module(module)
        except ImportError as error:
            missing.add(str(error))
            continue
        for name in names.split(", "):
            assert callable(getattr(loaded, name))
    assert all("pip install" in text for text in missing)
