"""Files of a policy: `token_policy.json` and, for its tensors, `token_policy.safetensors`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ..errors import PolicyError
from ..files import atomic_file

FloatArray = npt.NDArray[np.float32]

JSON_NAME = "token_policy.json"
TENSORS_NAME = "token_policy.safetensors"


def read_json(path: Path) -> object:
    """Parses a JSON file strictly: repeated keys, NaN and Infinity are refused.

    Raises:
        PolicyError: the file is missing, unreadable or not valid JSON.
    """

    def constant(name: str) -> NoReturn:
        raise PolicyError(f"{path}: found the number {name}; allowed: finite numbers")

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(items)
        if len(result) != len(items):
            keys = [key for key, _ in items]
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise PolicyError(f'{path}: found the key "{repeated}" twice in one object')
        return result

    try:
        content = path.read_text(encoding="utf-8")
        parsed: object = json.loads(content, parse_constant=constant, object_pairs_hook=pairs)
    except PolicyError:
        raise
    except FileNotFoundError:
        raise PolicyError(f"{path}: no such policy file") from None
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{path}: not valid JSON: {error}") from error
    return parsed


def read_tensors(path: Path) -> dict[str, FloatArray]:
    """Reads a safetensors file that must hold float32 tensors only.

    Raises:
        PolicyError: the file is damaged, or a tensor has another dtype.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, FloatArray] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 -- the handle is not iterable
                dtype = file.get_slice(name).get_dtype()
                if dtype != "F32":
                    raise PolicyError(f'{path}: tensor "{name}": found dtype {dtype}; allowed: F32')
                tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise PolicyError(f"{path}: not a readable safetensors file: {error}") from error
    return tensors


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that readers see either the old content or the whole new one."""
    with atomic_file(path) as file:
        file.write(content)


def write_policy(folder: Path, document: object, tensors: Mapping[str, FloatArray]) -> None:
    """Writes both files of a policy into an existing folder.

    The tensors go first and stale ones go last, so a JSON file never lacks the tensors it names.
    """
    from safetensors.numpy import save

    content = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if tensors:
        write_atomically(folder / TENSORS_NAME, save(dict(tensors)))
    write_atomically(folder / JSON_NAME, content.encode())
    if not tensors:
        (folder / TENSORS_NAME).unlink(missing_ok=True)


def digest(document: Any, tensors: Mapping[str, FloatArray]) -> str:
    """SHA-256 (hex) of a canonical JSON form and of named tensors."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    state = hashlib.sha256()

    def update(part: bytes) -> None:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)

    update(canonical.encode())
    for name in sorted(tensors):
        update(name.encode())
        update(repr(tensors[name].shape).encode())
        update(tensors[name].astype("<f4").tobytes())
    return state.hexdigest()
