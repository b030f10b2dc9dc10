"""A host whose ranks have some rows of the lattice each: CONFIG INPUT OUTPUT, with MPI started."""

import sys

import numpy as np
from mpi4py import MPI

from flowmc.capi.host import HostStream, Part
from flowmc.parallel import CollectiveError
from flowmc.parallel.mpi import MpiCommunicator

if __name__ == "__main__":
    configuration, source, destination = sys.argv[1:]
    if not MPI.Is_initialized():
        MPI.Init()
    world = MPI.COMM_WORLD
    rows = np.load(source)
    handle = world.py2f()
    count = len(rows) // world.size
    first = world.rank * count

    def part(dimensions):
        return Part((0, first), (rows.shape[1], count))

    try:
        HostStream(configuration, (), MpiCommunicator(handle), lambda d: Part((0, 0), (1, 1)))
    except CollectiveError as error:
        assert "sites of the lattice" in str(error)
    else:
        raise AssertionError("parts that are not the lattice are taken")
    stream = HostStream(configuration, (), MpiCommunicator(handle), part)
    own = np.ascontiguousarray(rows[first : first + count])
    assert own.shape == stream.shape
    stream.update(own, 3)
    value = stream.value("action")
    gathered = world.gather(own)
    if world.rank == 0:
        np.save(destination, np.concatenate(gathered))
        print(value)
    own[:] = np.nan
    try:
        stream.update(own, 4)
    except CollectiveError as error:
        assert "not finite" in str(error)
    else:
        raise AssertionError("a field that is not finite is updated")
    stream.close()
