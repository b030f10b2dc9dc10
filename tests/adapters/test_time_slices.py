"""Formats that keep whole time slices in memory: how many, how often they are read, and whether
they are complete. Uses openQCD's files, in which a slice is made of two, and HiRep's."""

import threading

import numpy as np
import pytest
from flowmc_adapters import (
    Configuration,
    FormatError,
    format_named,
    read,
    read_header,
    slab_sums,
    transfer,
    write,
)
from flowmc_adapters.layout import Layout
from flowmc_adapters.openqcd.hirep import _Sink as HirepSink
from flowmc_adapters.openqcd.links import OpenQcdSink
from flowmc_adapters.openqcd.time_slices import SliceAssembly
from flowmc_adapters.storage import FileStorage

DIMS = (4, 2, 8, 10)
SLICE_BYTES = 4 * 2 * 8 * 576
FORMATS = ["openqcd", "hirep"]
SMALL = (2, 2, 4, 6)
SLABS = [(t, z, z + 2) for t in range(6) for z in (0, 2)]


@pytest.fixture(autouse=True)
def few_sites(monkeypatch):
    """Several slabs per time slice, few slices kept, one thread."""
    monkeypatch.setattr(slab_sums, "_SITES", 16)
    monkeypatch.setattr(transfer, "_SERIAL_VOLUME", 1)
    monkeypatch.setattr("flowmc_adapters.openqcd.time_slices._KEPT_BYTES", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "conf"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kept", [0, 2**30])
def test_every_byte_is_read_once_but_for_the_start(path, make_links, monkeypatch, format, kept):
    monkeypatch.setattr(transfer, "_LARGEST_SLICE_KEPT", kept)
    write(path, Configuration(make_links(DIMS)), format)
    asked = []
    original = FileStorage.read

    def counted(self, offset, out):
        asked.append((offset, out.size))
        original(self, offset, out)

    monkeypatch.setattr(FileStorage, "read", counted)
    read(path)
    slices = [offset for offset, size in asked if size == SLICE_BYTES]
    assert len(set(slices)) == 10
    assert len(slices) <= 12


@pytest.mark.parametrize(("format", "expected"), [("openqcd", 1), ("hirep", 1)])
def test_few_slices_are_held_while_writing(path, make_links, monkeypatch, format, expected):
    most = 0
    original = SliceAssembly.buffer

    def buffer(self, t):
        nonlocal most
        found = original(self, t)
        most = max(most, len(self._open))
        return found

    monkeypatch.setattr(SliceAssembly, "buffer", buffer)
    write(path, Configuration(make_links(DIMS)), format)
    assert most == expected


def hand_over_before(sink, links):
    """The last time slice goes before the first one, where the sink asks for that."""
    if sink.needs_slice_before:
        for t, start, stop in SLABS:
            if t == SMALL[3] - 1:
                sink.write_before((t, start, stop), links[t, start:stop])


@pytest.mark.parametrize("lost", [0, 7, 11])
@pytest.mark.parametrize(
    ("format", "sink_type", "offset"), [("openqcd", OpenQcdSink, 24), ("hirep", HirepSink, 28)]
)
def test_a_missing_slab_is_noticed(path, make_links, lost, format, sink_type, offset):
    links = make_links(SMALL)
    write(path, Configuration(links), format)
    expected = path.read_bytes()[offset:]
    path.write_bytes(b"")
    order = "<" if format == "openqcd" else ">"
    with FileStorage(path, writable=True) as storage:
        sink = sink_type(storage, Layout(offset, SMALL, 3, 3, 64, order))
        hand_over_before(sink, links)
        for slab in SLABS[:lost] + SLABS[lost + 1 :]:
            sink.write(slab, links[slab[0], slab[1] : slab[2]])
        with pytest.raises(RuntimeError, match="not completed"):
            sink.finish()
        t, start, stop = SLABS[lost]
        sink.write(SLABS[lost], links[t, start:stop])
        sink.finish()
    assert path.read_bytes()[offset:] == expected


@pytest.mark.parametrize("twice", [0, 7, 11])
@pytest.mark.parametrize("sink_type", [OpenQcdSink, HirepSink])
def test_a_slab_that_comes_twice_is_noticed(path, make_links, twice, sink_type):
    links = make_links(SMALL)
    path.write_bytes(b"")
    with FileStorage(path, writable=True) as storage:
        sink = sink_type(storage, Layout(24, SMALL, 3, 3, 64, "<"))
        hand_over_before(sink, links)
        for slab in [*SLABS, SLABS[twice]]:
            sink.write(slab, links[slab[0], slab[1] : slab[2]])
        with pytest.raises(RuntimeError, match="not completed"):
            sink.finish()


@pytest.mark.parametrize("format", FORMATS)
def test_reading_from_many_threads_at_once(path, make_links, format):
    links = make_links(DIMS)
    write(path, Configuration(links), format)
    wrong = []
    with format_named(format).open(path, read_header(path)) as source:

        def work(seed):
            rng = np.random.default_rng(seed)
            for _ in range(40):
                t, start = int(rng.integers(10)), int(rng.integers(8))
                stop = int(rng.integers(start + 1, 9))
                out = np.empty((stop - start, 2, 4, 4, 3, 3), complex)
                source.read((t, start, stop), out)
                if not np.array_equal(out, links[t, start:stop]):
                    wrong.append((t, start, stop))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_shrinks_after_its_header_was_read(path, make_links, format):
    write(path, Configuration(make_links(DIMS)), format)
    header = read_header(path)
    path.write_bytes(path.read_bytes()[: 5 * SLICE_BYTES])
    out = np.empty((2, 2, 4, 4, 3, 3), complex)
    with format_named(format).open(path, header) as source:
        source.read((1, 0, 2), out)
        for _ in range(2):
            with pytest.raises(FormatError, match="truncated"):
                source.read((5, 0, 2), out)
