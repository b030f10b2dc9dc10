"""Fields and files that several tests need."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flowmc_adapters import Configuration, FormatError, formats, read

REAL_FILES = Path(__file__).resolve().parents[2].parent / "shared" / "configs"
# All extents differ, so that no wrong order of directions can hide.
DIMS = (2, 3, 4, 5)


def random_links(
    dims: tuple[int, ...] = DIMS, nc: int = 3, precision: int = 64, seed: int = 1
) -> np.ndarray:
    """Haar-random SU(N) links U[t, z, y, x, mu, row, col]."""
    rng = np.random.default_rng(seed)
    shape = (*reversed(dims), len(dims), nc, nc)
    gaussian = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    unitary, triangular = np.linalg.qr(gaussian)
    diagonal = np.diagonal(triangular, axis1=-2, axis2=-1)
    unitary = unitary * (diagonal / abs(diagonal))[..., None, :]
    unitary[..., 0] /= np.linalg.det(unitary)[..., None]
    return unitary.astype(np.complex64 if precision == 32 else np.complex128)


@pytest.fixture
def make_links() -> Callable[..., np.ndarray]:
    return random_links


@pytest.fixture
def make_configuration() -> Callable[..., Configuration]:
    def make(*args: object, metadata: dict[str, str] | None = None, **kwargs: object):
        return Configuration(random_links(*args, **kwargs), metadata=dict(metadata or {}))

    return make


@pytest.fixture
def read_bytes(tmp_path: Path) -> Callable[..., Configuration]:
    """Reads what a file with that content holds."""

    def go(content: bytes, **options: Any) -> Configuration:
        path = tmp_path / "conf.lime"
        path.write_bytes(content)
        return read(path, **options)

    return go


@pytest.fixture
def real_file() -> Callable[[str], Path]:
    def find(name: str) -> Path:
        path = REAL_FILES / name
        if not path.is_file():
            pytest.skip(f"real configuration {name} is not present beside the project")
        return path

    return find


@cache
def writable_precisions() -> dict[str, tuple[int, ...]]:
    """Formats that can be written, and the precisions each of them keeps."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, format in formats().items():
            if not format.writable:
                continue
            kept = []
            for precision in (32, 64):
                field = Configuration(random_links((2, 2, 2, 2), precision=precision))
                try:
                    format.write(Path(folder) / "conf", field, precision=precision)
                except FormatError:
                    continue
                kept.append(precision)
            found[name] = tuple(kept)
    return found


def round_trips() -> list[Any]:
    """All ordered pairs of formats at all their common precisions, for SU(2), SU(3), SU(4).

    Every pair is fast for SU(3) at one precision, and every format at each of them; every third
    pair is for the other groups.
    """
    precisions = writable_precisions()
    found = []
    for (i, source), (j, target) in itertools.product(enumerate(precisions), repeat=2):
        common = sorted({*precisions[source]} & {*precisions[target]})
        for number, (precision, nc) in enumerate(itertools.product(common, (2, 3, 4))):
            if nc == 3:
                is_fast = number // 3 == (i + j) % len(common)
            else:
                is_fast = (precision, nc) in ((32, 2), (64, 4)) and (i + 2 * j) % 3 == 0
            marks = () if is_fast else pytest.mark.slow
            identifier = f"{source}-{target}-{precision}-SU({nc})"
            found.append(pytest.param((source, target, precision, nc), marks=marks, id=identifier))
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`writable`, `source_format`, `target_format` go through all formats that can be written,
    `writable_at` through them and the precisions of each, `round_trip` through pairs of them."""
    if "round_trip" in metafunc.fixturenames:
        metafunc.parametrize("round_trip", round_trips())
    for argument in ("writable", "source_format", "target_format"):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, list(writable_precisions()))
    if "writable_at" in metafunc.fixturenames:
        pairs = [(name, bits) for name, kept in writable_precisions().items() for bits in kept]
        metafunc.parametrize("writable_at", pairs, ids=lambda pair: f"{pair[0]}-{pair[1]}")


@pytest.fixture
def equal_precision() -> Callable[..., Any]:
    """The highest precision that all the formats named can hold, None if there is none; or, with
    `all`, the set of those precisions."""

    def find(*names: str, all: bool = False) -> set[int] | int | None:
        common = set.intersection(*(set(writable_precisions()[name]) for name in names))
        return common if all else max(common, default=None)

    return find
