"""The layer rule, the size of files, what importing the package costs, and forced levels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import random_model as rm

from tokprune_rt import _core

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
LAYERS = ("base", "cpu", "kernels", "ops", "model", "bind")
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".inl", ".inc"})
LEVELS = _core.isa_levels()

_INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
_COMMENT = re.compile(r"//.*?$|/\*.*?\*/", re.MULTILINE | re.DOTALL)


def includes(path: Path) -> list[tuple[str, str]]:
    """(bracket, name) of every #include."""
    return _INCLUDE.findall(path.read_text(encoding="utf-8"))


def layer_of(path: Path) -> str:
    return path.relative_to(CSRC).parts[0]


def name_of(path: Path) -> str:
    return path.relative_to(CSRC).as_posix()


def is_kernel(path: Path) -> bool:
    """Compiled once per level: everything in kernels/ but the registry, which chooses."""
    return layer_of(path) == "kernels" and path.stem != "registry"


def test_every_source_belongs_to_a_layer() -> None:
    assert SOURCES
    assert {layer_of(path) for path in SOURCES} == set(LAYERS)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_includes_follow_the_layers(path: Path) -> None:
    """base <- cpu <- kernels <- ops <- model <- bind; quotes for our files, brackets for others."""
    allowed = LAYERS[: LAYERS.index(layer_of(path)) + 1]
    for bracket, name in includes(path):
        if bracket == '"':
            assert (CSRC / name).is_file(), f"{name} is not relative to csrc/"
            assert name.split("/")[0] in allowed, f"{name} is a higher layer"
        else:
            assert not (CSRC / name).exists()
            assert "pybind11" not in name or layer_of(path) == "bind"


@pytest.mark.parametrize("path", [p for p in SOURCES if is_kernel(p)], ids=name_of)
def test_kernels_see_nothing_but_kernels(path: Path) -> None:
    """No STL, no inline function of another layer: it could leak a level's instructions."""
    for bracket, name in includes(path):
        if bracket == "<":
            assert name in {"immintrin.h", "cstdint", "cstddef"}
        else:
            assert name.startswith("kernels/")
            assert name.endswith(".inl") or name in {"kernels/abi.h", "kernels/manifest.inc"}


def test_the_registry_sees_only_the_levels() -> None:
    for path in CSRC.glob("kernels/registry.*"):
        ours = {name for bracket, name in includes(path) if bracket == '"'}
        extra = {name for name in ours if not name.startswith(("kernels/", "base/"))}
        assert extra <= {"cpu/isa.h"}


@pytest.mark.parametrize("path", [p for p in SOURCES if layer_of(p) == "ops"], ids=name_of)
def test_ops_name_no_level(path: Path) -> None:
    code = _COMMENT.sub("", path.read_text(encoding="utf-8"))
    words = r"\b\w*(?:avx|sse\d|amx|vnni|scalar|isa_|IsaLevel|_mm\d*_|__m\d+)\w*"
    assert not re.findall(words, code, re.IGNORECASE)


@pytest.mark.parametrize("path", [p for p in SOURCES if layer_of(p) == "model"], ids=name_of)
def test_model_calls_kernels_through_ops(path: Path) -> None:
    code = _COMMENT.sub("", path.read_text(encoding="utf-8"))
    assert not re.findall(r"kernels\s*(?:->|\.)\s*\w+\s*\(|\b_mm\d*_\w+|\b__m\d+\w*", code)


def test_pybind11_stays_in_bind() -> None:
    users = {layer_of(p) for p in SOURCES if "pybind11" in p.read_text(encoding="utf-8")}
    assert users == {"bind"}


def test_cmake_lists_exactly_the_sources() -> None:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    listed = set(re.findall(r"csrc/[\w/]+\.cpp", text))
    if match := re.search(r"foreach\(isa ([\w ]+)\)", text):
        assert "csrc/kernels/isa/${isa}.cpp" in text
        listed |= {f"csrc/kernels/isa/{level}.cpp" for level in match[1].split()}
    assert listed == {f"csrc/{name_of(p)}" for p in SOURCES if p.suffix == ".cpp"}


def test_files_stay_short() -> None:
    files = [*SOURCES, *ROOT.glob("tests/**/*.cpp"), *ROOT.glob("tests/**/*.h")]
    files += [*ROOT.glob("python/**/*.py"), *ROOT.glob("python/**/*.pyi")]
    files += ROOT.glob("tests/**/*.py")
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    assert {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > 400} == {}


def run_python(code: str, **env: str) -> str:
    """Standard output of a fresh interpreter that sees only ``env`` of our own variables."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TOKPRUNE_")}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=inherited | env,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


HEAVY = ("torch", "transformers", "sentence_transformers")


def test_import_is_light() -> None:
    heavy = (*HEAVY, "huggingface_hub", "tokenizers", "numpy", "typer", "rich", "matplotlib")
    code = f"import sys, tokprune_rt; print([m for m in {heavy!r} if m in sys.modules])"
    assert run_python(code) == "[]"


def test_encoding_needs_no_torch(minilm_folder: Path) -> None:
    code = (
        "import sys, tokprune_rt\n"
        f"model = tokprune_rt.load({str(minilm_folder)!r})\n"
        "assert model.encode('A sentence.').shape == (384,)\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_forced_level_is_the_active_one() -> None:
    shape = rm.config()
    weights = rm.tensors(shape)
    for level in LEVELS:
        assert _core.Encoder(shape, weights, 1, level).isa == level


ACTIVE = (
    "import sys; sys.path.insert(0, {tests!r})\n"
    "import random_model as rm\n"
    "from tokprune_rt import _core\n"
    "shape = rm.config()\n"
    "try: print(_core.Encoder(shape, rm.tensors(shape), 1, {isa!r}).isa)\n"
    "except ValueError as error: print(error)"
)


def active_level(isa: str = "", **env: str) -> str:
    return run_python(ACTIVE.format(tests=str(ROOT / "tests"), isa=isa), **env)


def test_environment_forces_the_level() -> None:
    for level in LEVELS:
        assert active_level(TOKPRUNE_ISA=level) == level
    assert active_level() == LEVELS[-1]
    assert active_level(TOKPRUNE_ISA="") == LEVELS[-1]


def test_argument_beats_the_environment() -> None:
    assert active_level("scalar", TOKPRUNE_ISA=LEVELS[-1]) == "scalar"
    assert active_level("scalar", TOKPRUNE_ISA="pentium") == "scalar"


@pytest.mark.parametrize("name", ["pentium", "AVX2", "avx2 ", "avx", "best"])
def test_unknown_level_is_refused(name: str) -> None:
    shape = rm.config()
    with pytest.raises(ValueError, match=f"isa '{name}' is not an instruction-set level") as caught:
        _core.Encoder(shape, rm.tensors(shape), 1, name)
    assert str(caught.value).endswith(f"supported here: {', '.join(LEVELS)}")
    message = active_level(TOKPRUNE_ISA=name)
    assert message.startswith(f"TOKPRUNE_ISA '{name}' is not an instruction-set level")
    assert message.endswith(f"supported here: {', '.join(LEVELS)}")


def test_unsupported_level_is_refused() -> None:
    known = {path.stem for path in CSRC.glob("kernels/isa/*.cpp")}
    assert set(LEVELS) <= known
    missing = sorted(known - set(LEVELS))
    if not missing:
        pytest.skip("this CPU supports every level")
    for name in missing:
        message = active_level(TOKPRUNE_ISA=name)
        assert message.startswith(f"TOKPRUNE_ISA '{name}' is not supported by this CPU")
        assert message.endswith(f"supported here: {', '.join(LEVELS)}")
