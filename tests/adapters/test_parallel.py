"""Many ranks, one file: the same bytes and the same numbers for any number of ranks."""

import json
from pathlib import Path

import numpy as np
import pytest
from flowmc_adapters import convert, formats, read, slab_sums, write
from flowmc_adapters.parallel import time_slices

from tests.mpi import launch, needs_mpi

PROGRAM = Path(__file__).with_name("mpi_program.py")


def run(ranks, folder):
    result = launch(ranks, PROGRAM, folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(("lt", "ranks"), [(8, 3), (2, 5), (7, 7), (1, 2), (64, 6)])
def test_time_slices_are_all_given_out_once(lt, ranks):
    shares = [time_slices(lt, rank, ranks) for rank in range(ranks)]
    assert [t for share in shares for t in share] == list(range(lt))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@needs_mpi
def test_any_number_of_ranks_gives_the_same_bytes_as_one_process(
    tmp_path, make_configuration, monkeypatch
):
    pytest.importorskip("mpi4py")
    monkeypatch.setattr(slab_sums, "_SITES", 16)  # as in the program
    configuration = make_configuration(dims=(2, 4, 6, 4), metadata={"SEQUENCE_NUMBER": "3"})
    writable = [
        name
        for name, found in formats().items()
        if found.writable and getattr(found, "precisions", ())[-1:] == (64,)
    ]
    for name in writable:
        write(tmp_path / f"source.{name}", configuration, name)
    write(tmp_path / "source.milc", configuration, "milc", 32)
    damaged = bytearray((tmp_path / "source.nersc").read_bytes())
    damaged[-5] ^= 1
    (tmp_path / "damaged.nersc").write_bytes(damaged)
    alone = tmp_path / "alone"
    alone.mkdir()
    for source in [*writable, "milc"]:
        for target in writable:
            if "nersc" not in (source, target) and source != target:
                continue
            convert(tmp_path / f"source.{source}", alone / f"{source}.{target}", target)
        convert(tmp_path / f"source.{source}", alone / f"{source}.milc", "milc", 32)
    results = []
    for ranks in (3, 5):  # 5: more than there are time slices
        printed = run(ranks, tmp_path)
        assert printed.count("lattice") == 2, printed  # by the first rank alone
        out = tmp_path / f"ranks{ranks}"
        results.append(json.loads((out / "results.json").read_text()))
        for path in alone.iterdir():
            if path.name.endswith(".info"):
                continue
            source, target = path.name.split(".")
            expected = path.read_bytes()
            if path.name == "nersc.nersc":
                assert (out / "command").read_bytes() == expected
            assert (out / f"{source}.converted.{target}").read_bytes() == expected, path.name
            if target != "milc":
                assert (out / f"{source}.written.{target}").read_bytes() == expected, path.name
    messages = [{key: value for key, value in result.items() if " " not in key and not
                 isinstance(value, str)} for result in results]  # fmt: skip
    assert all(result == messages[0] for result in messages)
    for result in results:
        assert result["damaged"].startswith("CheckError")
        assert "checksum does not match" in result["damaged"]
        assert "absent" in result["absent"]
        assert "32-bit numbers only" in result["refused"]
        assert result["no directory"].startswith("FileNotFoundError")
        assert "not finite" in result["not finite"]
        assert "must hold the time slices" in result["wrong slices"]
        for name in writable:
            assert result[name][2] in (True, None)
    links = read(tmp_path / "source.nersc").links
    assert np.array_equal(links, configuration.links)
