"""The table of formats, and how others get into it."""

import importlib.metadata
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from flowmc_adapters import (
    Configuration,
    Format,
    FormatError,
    Header,
    atomic_write,
    detect,
    formats,
    read,
    register,
    registry,
    write,
)


class RawFormat(Format):
    """Two bytes of magic, four of extents, then native doubles."""

    name = "raw"
    description = "for this test"

    def detect(self, head, path):
        return head[:2] == b"RW"

    def read_header(self, path, *, dims=None):
        with open(path, "rb") as file:
            head = file.read(6)
        if len(head) < 6:
            raise FormatError(path, len(head), "truncated")
        dims = tuple(head[2:6])
        return Header(self.name, dims, 3, 64, 6, int(np.prod(dims)) * 4 * 144)

    def read(self, path, *, dims=None):
        header = self.read_header(path)
        links = np.fromfile(path, dtype=complex, offset=6)
        return Configuration(links.reshape(*header.dims[::-1], 4, 3, 3), format=self.name)

    def write(self, path, configuration, *, precision=None):
        with atomic_write(path) as file:
            file.write(b"RW" + bytes(configuration.dims) + configuration.links.tobytes())
        return []


@pytest.fixture
def clean_table(monkeypatch):
    monkeypatch.setattr(registry, "_formats", dict(registry._formats))
    registry._load_entry_points.cache_clear()
    yield
    registry._load_entry_points.cache_clear()


def test_built_in_formats_have_descriptions():
    assert {"nersc", "ildg", "scidac", "npy"} <= set(formats())
    for name, format in formats().items():
        assert format.name == name
        assert format.description


def test_a_format_of_ones_own(clean_table, tmp_path, make_configuration):
    register(RawFormat())
    configuration = make_configuration()
    write(tmp_path / "conf", configuration, "raw")
    assert detect(tmp_path / "conf").name == "raw"
    assert read(tmp_path / "conf").links.tobytes() == configuration.links.tobytes()
    with pytest.raises(ValueError, match="registered already"):
        register(RawFormat())


def test_the_example_of_the_documentation(clean_table, tmp_path, make_configuration):
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(import math\n.*?)```", text, flags=re.DOTALL)
    exec(example, {"__name__": "example"})
    configuration = make_configuration()
    write(tmp_path / "conf", configuration, "bare")
    assert read(tmp_path / "conf").links.tobytes() == configuration.links.tobytes()
    (tmp_path / "conf").write_bytes((tmp_path / "conf").read_bytes()[:-16])
    with pytest.raises(FormatError, match="bytes of links"):
        read(tmp_path / "conf")


def test_a_format_by_entry_point(clean_table, monkeypatch):
    module = types.ModuleType("another_package")
    module.RawFormat, module.broken = RawFormat, 3
    monkeypatch.setitem(sys.modules, "another_package", module)
    entries = [
        importlib.metadata.EntryPoint(name, value, "flowmc.formats")
        for name, value in (
            ("broken", "another_package:broken"),
            ("absent", "not_installed_anywhere:X"),
            ("raw", "another_package:RawFormat"),
        )
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    with pytest.warns(UserWarning, match="broken|absent"):
        assert "raw" in formats()


def test_a_format_by_its_module(monkeypatch, tmp_path, make_configuration):
    module = types.ModuleType("my_formats")
    module.RawFormat = RawFormat
    monkeypatch.setitem(sys.modules, "my_formats", module)
    write(tmp_path / "conf", make_configuration(), "my_formats:RawFormat")
    assert (tmp_path / "conf").read_bytes()[:6] == b"RW\x02\x03\x04\x05"


@pytest.mark.parametrize("name", ["nercs", "no_such_module:X", "os:getcwd", "os:absent"])
def test_unknown_formats(tmp_path, make_configuration, name):
    with pytest.raises(ValueError, match=name):
        write(tmp_path / "conf", make_configuration(), name)


def test_extents_given_must_be_those_of_the_file(tmp_path, make_configuration):
    for format in ("nersc", "ildg", "npy"):
        write(tmp_path / "conf", make_configuration(), format)
        assert read(tmp_path / "conf", dims=(2, 3, 4, 5)).dims == (2, 3, 4, 5)
        with pytest.raises(FormatError):
            read(tmp_path / "conf", dims=(5, 4, 3, 2))


def test_absent_files_are_os_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent")
