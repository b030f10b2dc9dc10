"""What every rank does in `test_parallel`: run as `mpirun -n N python mpi_program.py FOLDER`.

For every format: the source file, read and written by all ranks, and converted; failures of one
rank must reach all of them.
"""

import json
import sys
from pathlib import Path

from flowmc_adapters import CheckError, FormatError, cli, formats, parallel, slab_sums
from mpi4py import MPI

COMM = MPI.COMM_WORLD


def refusal(function, *arguments, **options):
    """The error that all ranks get; they must agree."""
    try:
        function(COMM, *arguments, **options)
    except (FormatError, OSError, ValueError) as error:
        message = f"{type(error).__name__}: {error}"
    else:
        message = "nothing was raised"
    messages = COMM.allgather(message)
    assert len(set(messages)) == 1, messages
    return message


def main(folder: Path) -> None:
    slab_sums._SITES = 16  # several slabs in every time slice
    out = folder / f"ranks{COMM.size}"
    if COMM.rank == 0:
        out.mkdir()
    COMM.barrier()
    results = {}
    for source in sorted(folder.glob("source.*[!o]")):  # not the .info file of MILC
        name = source.suffix[1:]
        verdict = parallel.verify(COMM, source)
        slab = parallel.read(COMM, source)
        mine = parallel.time_slices(slab.dims[-1], COMM.rank, COMM.size)
        assert slab.links.shape[0] == len(mine)
        results[name] = [
            verdict.measurements.plaquettes.mean,
            verdict.measurements.link_trace,
            None if verdict.checksum is None else verdict.checksum.ok,
        ]
        for target, found in formats().items():
            if not found.writable:
                continue
            if getattr(found, "precisions", ())[-1:] != (64,):
                continue
            if "nersc" not in (name, target) and name != target:
                continue  # every reader and every writer once
            parallel.write(COMM, out / f"{name}.written.{target}", slab, target)
            parallel.convert(COMM, source, out / f"{name}.converted.{target}", target)
        parallel.convert(COMM, source, out / f"{name}.converted.milc", "milc", 32)
    nersc = folder / "source.nersc"
    results["damaged"] = refusal(parallel.read, folder / "damaged.nersc")
    results["absent"] = refusal(parallel.read, folder / "absent")
    results["refused"] = refusal(parallel.convert, nersc, out / "never", "milc")
    results["no directory"] = refusal(parallel.convert, nersc, out / "no" / "file", "nersc")
    slab = parallel.read(COMM, nersc)
    if slab.links.size and COMM.rank == min(1, COMM.size - 1):
        slab.links[0, 0, 0, 0, 0, 0, 0] = float("nan")
    results["not finite"] = refusal(parallel.write, out / "never", slab, "ildg")
    slab.first += 1
    results["wrong slices"] = refusal(parallel.write, out / "never", slab, "ildg")
    try:
        parallel.read(COMM, folder / "damaged.nersc")
    except CheckError:
        pass
    else:
        raise AssertionError("the damage was not noticed")
    convert = ["convert", "--mpi", str(nersc), str(out / "command"), "--format", "nersc"]
    assert cli.main(convert) == 0
    assert cli.main(["inspect", "--mpi", str(out / "command"), str(folder / "damaged.nersc")]) == 1
    if COMM.rank == 0:
        assert not (out / "never").exists()
        assert not (out / "no").exists()
        assert not list(out.glob(".*"))
        (out / "results.json").write_text(json.dumps(results))


main(Path(sys.argv[1]))
