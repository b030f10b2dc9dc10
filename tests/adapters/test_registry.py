"""The table of formats, and how others get into it."""

import importlib.metadata
import re
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from flowmc_adapters import (
    CheckError,
    Configuration,
    Format,
    FormatError,
    Header,
    atomic_write,
    convert,
    detect,
    formats,
    inspect,
    plaquettes,
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

    def read_header(self, path, *, dims=None, layout=None):
        with open(path, "rb") as file:
            head = file.read(6)
        if len(head) < 6:
            raise FormatError(path, len(head), "truncated")
        dims = tuple(head[2:6])
        return Header(self.name, dims, 3, 64)

    def read(self, path, *, dims=None, layout=None):
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


@pytest.fixture
def bare(clean_table):
    """The example of the documentation, registered."""
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(import struct\n.*?)```", text, flags=re.DOTALL)
    exec(example, {"__name__": "example"})


def test_the_example_of_the_documentation(bare, tmp_path, make_configuration):
    configuration = make_configuration()
    path = tmp_path / "conf"
    write(path, configuration, "bare")
    content = path.read_bytes()
    magic, *dims, checksum, plaquette = struct.unpack_from("<4s4iId", content)
    assert (magic, *dims) == (b"BARE", 2, 3, 4, 5)
    assert plaquette == plaquettes(configuration.links).mean
    assert content[32:] == configuration.links.astype("<c16").tobytes()
    assert checksum == sum(struct.unpack(f"<{len(content) // 4 - 8}I", content[32:])) % 2**32
    again = read(path)
    assert again.links.tobytes() == configuration.links.tobytes()
    assert again.checksum.ok
    convert(path, tmp_path / "other", "ildg")
    convert(tmp_path / "other", tmp_path / "back", "bare")
    assert (tmp_path / "back").read_bytes() == content


def test_checks_apply_to_the_example(bare, tmp_path, make_configuration):
    path = tmp_path / "conf"
    write(path, make_configuration(), "bare")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckError, match="checksum"):
        read(path)
    path.write_bytes(content[:24] + struct.pack("<d", 0.5) + content[32:])
    with pytest.raises(CheckError, match="plaquette"):
        read(path)
    for cut in (len(content) - 16, 33, 31, 5):
        path.write_bytes(content[:cut])
        with pytest.raises(FormatError, match="truncated"):
            read(path)
    path.write_bytes(struct.pack("<4s4iId", b"BARE", *[2**31 - 1] * 4, 0, 0) + bytes(1000))
    with pytest.raises(FormatError, match="announces"):
        read(path)
    with pytest.raises(FormatError, match="64-bit numbers only"):
        write(path, make_configuration(), "bare", precision=32)
    with pytest.raises(FormatError, match="N = 2"):
        write(path, make_configuration(nc=2), "bare")


def test_a_format_that_reads_into_memory_is_checked_as_well(
    clean_table, tmp_path, make_configuration
):
    register(RawFormat())
    configuration = make_configuration()
    configuration.links[1, 0, 0, 0, 2] *= 1.01
    write(tmp_path / "conf", configuration, "raw")
    assert any("not in SU(3)" in warning for warning in read(tmp_path / "conf").warnings)
    assert inspect(tmp_path / "conf")["unitarity_error"] == pytest.approx(1.01**2 - 1)
    with pytest.raises(CheckError, match="check_group=False"):
        convert(tmp_path / "conf", tmp_path / "nersc", "nersc")
    convert(tmp_path / "conf", tmp_path / "nersc", "nersc", check_group=False)
    convert(tmp_path / "nersc", tmp_path / "again", "raw", check_group=False)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "conf").read_bytes()


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


def test_extents_given_must_be_those_of_the_file(
    tmp_path, make_configuration, equal_precision, writable
):
    # Even, as openQCD has them.
    dims = (2, 4, 6, 8)
    write(
        tmp_path / "conf", make_configuration(dims, precision=equal_precision(writable)), writable
    )
    assert read(tmp_path / "conf", dims=dims).dims == dims
    for wrong in ((8, 6, 4, 2), (2, 4, 6, 10)):
        with pytest.raises(FormatError) as caught:
            read(tmp_path / "conf", dims=wrong)
        assert str(tmp_path / "conf") in str(caught.value) and "\n" not in str(caught.value)


def test_absent_files_are_os_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent")
