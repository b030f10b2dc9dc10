"""The loop that everything passes through: threads, slabs, faults in the middle."""

import itertools
import os
import random
import threading
import time

import numpy as np
import pytest
from flowmc_adapters import CheckError, convert, inspect, read, slab_sums, storage, transfer, write
from flowmc_adapters.changes import precision_change
from flowmc_adapters.checksums import ScidacChecksum
from flowmc_adapters.layout import Layout
from flowmc_adapters.links import ArraySink, ArraySource, LayoutSink, LayoutSource, LinkSink
from flowmc_adapters.storage import FileStorage
from flowmc_adapters.transfer import slabs_of

DIMS = [(2, 3, 4, 5), (2, 3, 4, 2), (3, 2, 5, 1), (2, 1, 1, 3), (1, 1, 1, 1), (2, 3, 4), (3, 2)]


@pytest.fixture
def threads(monkeypatch):
    def use(count):
        monkeypatch.setattr(transfer, "_MOST_THREADS", count)
        monkeypatch.setattr(transfer, "_SERIAL_VOLUME", 0)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))

    return use


class SlowSource(ArraySource):
    """Slabs take their time, so that threads overtake each other."""

    def read(self, slab, out, checksum=None):
        time.sleep(random.random() * 1e-3)
        super().read(slab, out, checksum)


class Broken(LinkSink):
    def __init__(self, at, error):
        self.at, self.error, self.seen = at, error, []

    def write(self, slab, links, checksum=None):
        self.seen.append(slab)
        if slab == self.at:
            raise self.error


@pytest.mark.parametrize("dims", [*DIMS, (4, 4, 7, 3), (3, 7), (1, 1, 9, 2)])
@pytest.mark.parametrize("sites", [1, 5, 12, 100, 8192])
def test_slabs_cover_the_lattice_in_order(monkeypatch, dims, sites):
    monkeypatch.setattr(slab_sums, "_SITES", sites)
    planes = [(t, z) for t, start, stop in slabs_of(dims) for z in range(start, stop)]
    assert planes == list(itertools.product(range(dims[-1]), range(dims[-2])))


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("sites", [1, 12, 8192])
@pytest.mark.parametrize("kept", [True, False])
def test_results_do_not_depend_on_threads(
    tmp_path, monkeypatch, make_links, threads, dims, sites, kept
):
    monkeypatch.setattr(slab_sums, "_SITES", sites)
    if not kept:
        monkeypatch.setattr(transfer, "_LARGEST_SLICE_KEPT", 0)
    links = make_links(dims)
    layout = Layout(10, dims, 3, 3, 64, ">")
    path, results = tmp_path / "file", []
    for count in (1, 2, 3, 8):
        threads(count)
        checksum = ScidacChecksum(layout.site_bytes)
        path.write_bytes(b"")
        with FileStorage(path, writable=True) as file:
            sums = transfer.transfer(
                SlowSource(links), LayoutSink(file, layout), sink_checksum=checksum
            )
        assert path.read_bytes()[10:] == links.astype(">c16").tobytes()
        again, copy = ScidacChecksum(layout.site_bytes), np.empty_like(links)
        with FileStorage(path) as file:
            back = transfer.transfer(
                LayoutSource(file, layout), ArraySink(copy), source_checksum=again
            )
        assert copy.tobytes() == links.tobytes()
        assert again.text == checksum.text
        results.append((sums, back, checksum.text))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("dims", [(2, 3, 2, 3), (2, 3, 4, 2), (2, 3, 3, 4)])
def test_neighbours_are_not_overwritten_by_faster_threads(monkeypatch, make_links, threads, dims):
    """The last time slice needs the first one while others are done with that."""
    monkeypatch.setattr(slab_sums, "_SITES", 6)
    links = make_links(dims)
    expected = transfer.transfer(ArraySource(links)).source
    measured = transfer.slab_sums

    def late(*args):
        time.sleep(random.random() * 3e-3)
        return measured(*args)

    threads(4)
    monkeypatch.setattr(transfer, "slab_sums", late)
    for _ in range(25):
        assert transfer.transfer(SlowSource(links)).source == expected


def test_written_files_do_not_depend_on_threads(
    tmp_path, monkeypatch, make_configuration, threads, writable_at
):
    format, precision = writable_at
    monkeypatch.setattr(slab_sums, "_SITES", 8)
    configuration = make_configuration((2, 2, 6, 8), precision=precision)
    contents, reports = [], []
    for count in (1, 4):
        threads(count)
        write(tmp_path / "conf", configuration, format)
        contents.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
        assert read(tmp_path / "conf").links.tobytes() == configuration.links.tobytes()
        reports.append(inspect(tmp_path / "conf"))
        convert(tmp_path / "conf", tmp_path / "conf", format)
        contents.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert all(content == contents[0] for content in contents)
    assert reports[0] == reports[1]


@pytest.mark.parametrize("count", [1, 4])
def test_every_slab_is_checksummed_once(monkeypatch, make_links, threads, count):
    monkeypatch.setattr(slab_sums, "_SITES", 6)
    links, fed = make_links((2, 3, 4, 3)), []

    class Source(ArraySource):
        def read(self, slab, out, checksum=None):
            super().read(slab, out)
            if checksum is not None:
                fed.append(slab)

    threads(count)
    for volume in (transfer._LARGEST_SLICE_KEPT, 0):
        monkeypatch.setattr(transfer, "_LARGEST_SLICE_KEPT", volume)
        transfer.transfer(Source(links), source_checksum=ScidacChecksum(64))
        assert sorted(fed) == slabs_of((2, 3, 4, 3))
        fed.clear()


def test_parts_of_the_slabs_give_parts_of_the_sums(monkeypatch, make_links):
    monkeypatch.setattr(slab_sums, "_SITES", 6)
    links = make_links((2, 3, 4, 3))
    whole = transfer.transfer(ArraySource(links)).source
    for ranks in (2, 3, 12):
        slabs = slabs_of((2, 3, 4, 3))
        shares = [slabs[i * len(slabs) // ranks : (i + 1) * len(slabs) // ranks]
                  for i in range(ranks)]  # fmt: skip
        parts = [transfer.transfer(ArraySource(links), slabs=share).source for share in shares]
        assert [part for share in parts for part in share] == whole


@pytest.mark.parametrize("count", [1, 4])
def test_a_change_is_measured_on_both_sides(monkeypatch, make_links, threads, count):
    monkeypatch.setattr(slab_sums, "_SITES", 6)
    threads(count)
    links = make_links((2, 3, 4, 3))
    rounded = np.empty_like(links, dtype=np.complex64)
    sums = transfer.transfer(
        ArraySource(links), ArraySink(rounded), change=precision_change(ArraySource(links), 32)
    )
    assert rounded.tobytes() == links.astype(np.complex64).tobytes()
    assert sums.source == transfer.transfer(ArraySource(links)).source
    assert sums.sink == transfer.transfer(ArraySource(rounded)).source
    assert sums.sink != sums.source


def test_without_measuring(make_links):
    links = make_links()
    copy = np.empty_like(links)
    sums = transfer.transfer(ArraySource(links), ArraySink(copy), measure=False)
    assert (sums.source, sums.sink) == ([], [])
    assert copy.tobytes() == links.tobytes()


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf, complex(0, -np.inf)])
def test_a_link_that_is_not_finite_is_found_wherever_it_is(
    monkeypatch, make_links, threads, count, value
):
    monkeypatch.setattr(slab_sums, "_SITES", 6)
    threads(count)
    rng = np.random.default_rng(7)
    for measure in (True, False):
        for _ in range(20):
            links = make_links((2, 3, 4, 3))
            t, z, y, x, mu, *element = index = tuple(rng.integers(links.shape))
            links[index] = value
            with pytest.raises(CheckError) as caught:
                transfer.transfer(ArraySource(links), measure=measure)
            assert f"at site [{x},{y},{z},{t}], mu = {'xyzt'[mu]};" in caught.value.reason, element


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()]
)
def test_faults_of_a_sink_end_the_transfer(monkeypatch, make_links, threads, count, error):
    monkeypatch.setattr(slab_sums, "_SITES", 6)
    threads(count)
    links, before = make_links((2, 3, 4, 20)), threading.active_count()
    sink = Broken((4, 1, 2), error)
    with pytest.raises(type(error)):
        transfer.transfer(ArraySource(links), sink)
    assert len(sink.seen) < 17 + 4 * count  # of 80: those on their way, no more
    assert threading.active_count() == before


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_faults_of_a_source_end_the_transfer(monkeypatch, make_links, threads, count, error):
    monkeypatch.setattr(slab_sums, "_SITES", 6)
    threads(count)
    before = threading.active_count()

    class Source(ArraySource):
        def read(self, slab, out, checksum=None):
            if slab == (4, 1, 2):
                raise error
            super().read(slab, out, checksum)

    with pytest.raises(type(error)):
        transfer.transfer(Source(make_links((2, 3, 4, 20))))
    assert threading.active_count() == before


@pytest.mark.parametrize("count", [1, 4])
def test_interrupted_writing_leaves_nothing(
    tmp_path, monkeypatch, make_configuration, threads, count
):
    monkeypatch.setattr(slab_sums, "_SITES", 6)
    threads(count)
    real, calls = os.pwrite, itertools.count()

    def interrupted(*args):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(os, "pwrite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "conf", make_configuration(), "ildg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 4])
def test_progress_counts_to_the_end(monkeypatch, make_links, threads, count):
    monkeypatch.setattr(slab_sums, "_SITES", 6)
    threads(count)
    told = []
    transfer.transfer(ArraySource(make_links()), progress=lambda *args: told.append(args))
    assert told == [(i, 20) for i in range(1, 21)]


def test_systems_that_read_and_write_less_than_asked(tmp_path, monkeypatch, make_configuration):
    """Network file systems do; 1000 bytes are no whole number of sites."""
    read_real, write_real = os.preadv, os.pwrite
    monkeypatch.setattr(storage.os, "preadv", lambda fd, to, at: read_real(fd, [to[0][:1000]], at))
    monkeypatch.setattr(storage.os, "pwrite", lambda fd, data, at: write_real(fd, data[:1000], at))
    configuration = make_configuration()
    write(tmp_path / "conf", configuration, "ildg")
    assert read(tmp_path / "conf").links.tobytes() == configuration.links.tobytes()
