"""Links that only the HDF5 library can get at: chunked or compressed datasets, and datasets whose
fastest axis is time (QLUA)."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from ..bounds import require_bounded
from ..checksums import ChecksumSum
from ..configuration import ComplexArray, PathLike
from ..errors import CheckError, FormatError
from ..finite import not_finite_text
from ..layout import Layout, encode
from ..links import LinkSource, Slab, first_site
from .file import guarded, number_type, plain_numbers

# Of the time slices read at once; every block of them takes a pass over the file if time is fastest
_BLOCK_BYTES = 2**26
_TIME_LAST_BYTES = 2**28
# The one being read, the one above it, and that of a thread that is late.
_BLOCKS = 3


class Hdf5Source(LinkSource):
    """Links read through h5py, a few whole time slices at a time.

    The library runs one call at a time anyway, and chunks rarely follow our slabs: a few time
    slices are read at once and kept until they are no longer needed.

    Args:
        path: for error messages.
        file: the open file.
        datasets: path of the dataset, or of those of the directions x, y, z, t.
        layout: extents and precision; the checksum, if there is one, is that of links stored so.
        time_last: the axes of the datasets are (Lx, Ly, Lz, Lt), not (Lt, Lz, Ly, Lx).
        checksum: makes an accumulator for the layout, if the file has a checksum.
    """

    def __init__(
        self,
        path: PathLike,
        file: Any,
        datasets: tuple[str, ...],
        layout: Layout,
        time_last: bool,
        checksum: Callable[[Layout], ChecksumSum | None],
    ) -> None:
        self._path, self._layout, self._time_last = path, layout, time_last
        self._checksum = checksum
        self.dims, self.nc, self.precision = layout.dims, layout.nc, layout.precision
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, ComplexArray] = OrderedDict()
        with guarded(path):
            self._datasets = [file[name] for name in datasets]
            chunks = self._datasets[0].chunks
            packed = sum(int(dataset.id.get_storage_size()) for dataset in self._datasets)
            chunk_bytes = math.prod(chunks or ()) * self._datasets[0].dtype.itemsize
        slice_bytes = layout.total_bytes // self.dims[-1]
        at_once = max(slice_bytes, chunk_bytes)
        require_bounded(path, ", ".join(datasets), at_once, layout.total_bytes, packed)
        fitting = max(1, (_TIME_LAST_BYTES if time_last else _BLOCK_BYTES) // slice_bytes)
        # Time runs fastest: single slices would touch every page of the file again and again
        wanted = self.dims[-1] if time_last else 1 if chunks is None else chunks[0]
        self._slices = min(fitting, wanted, self.dims[-1])

    def read(self, slab: Slab, out: ComplexArray, checksum: ChecksumSum | None = None) -> None:
        """See `LinkSource.read`."""
        t, start, stop = slab
        index, inside = divmod(t, self._slices)
        with self._lock:
            block = self._blocks.get(index)
            if block is None:
                if len(self._blocks) >= _BLOCKS:
                    self._blocks.popitem(last=False)
                block = self._blocks[index] = self._load(index * self._slices)
            self._blocks.move_to_end(index)
        np.copyto(out, block[inside, start:stop])
        if checksum is not None:
            raw = np.empty(out.nbytes, dtype=np.uint8)
            encode(out, self._layout, raw)
            checksum.update(first_site(self.dims, slab), raw)

    def new_checksum(self) -> ChecksumSum | None:
        """See `LinkSource.new_checksum`."""
        return self._checksum(self._layout)

    def _load(self, begin: int) -> ComplexArray:
        """Time slices from `begin` on, `[t, z, ..., x, mu, row, col]`."""
        end = min(begin + self._slices, self.dims[-1])
        lattice, matrix = len(self.dims), (self.nc, self.nc)
        shape = (end - begin, *reversed(self.dims[:-1]), lattice, *matrix)
        links: ComplexArray = np.empty(shape, self.complex_type)
        for mu, dataset in enumerate(self._datasets):
            with guarded(self._path):
                kind = number_type(dataset)
                if self._time_last:
                    values = dataset[(*(slice(None),) * (lattice - 1), slice(begin, end))]
                else:
                    values = dataset[begin:end]
            if kind is None or values.size * kind.element.itemsize % links.itemsize:
                raise FormatError(self._path, None, f"dataset {dataset.name} changed its type")
            numbers = plain_numbers(values, kind)
            if len(self._datasets) == 1:
                links[...] = numbers.reshape(links.shape)
                continue
            if self._time_last:
                numbers = numbers.transpose(*reversed(range(lattice)), lattice, lattice + 1)
            links[..., mu, :, :] = numbers.reshape(*shape[:-3], *matrix)
        return links

    def _not_finite(self, slab: Slab, site: str) -> FormatError:
        names = ", ".join(dataset.name for dataset in self._datasets)
        return CheckError(
            self._path,
            None,
            not_finite_text(f"dataset {names} at {site}"),
        )
