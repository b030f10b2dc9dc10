"""Boundary conditions that are not periodic: named by `inspect`, and never lost in silence."""

import json

import numpy as np
import pytest
from flowmc_adapters import CheckError, Configuration, FormatError, convert, inspect, read, write
from flowmc_adapters.cli import main

DIMS = (4, 2, 6, 8)


@pytest.fixture
def open_field(tmp_path, make_links):
    """An openQCD file with open boundaries in time."""
    links = make_links(DIMS)
    links[-1, ..., 3, :, :] = 0
    path = tmp_path / "runn1"
    assert write(path, Configuration(links), "openqcd") == []
    return path


@pytest.mark.parametrize("form", ["openqcd", "hirep"])
def test_codes_with_open_boundaries_get_them(open_field, tmp_path, form):
    converted = convert(open_field, tmp_path / "copy", form)
    assert not any("was written" in warning for warning in converted.warnings)
    assert np.array_equal(read(tmp_path / "copy").links, read(open_field).links)
    assert inspect(tmp_path / "copy")["boundary"] == "open"


@pytest.mark.parametrize("form", ["nersc", "ildg", "scidac", "hdf5", "npy", "npz"])
def test_codes_without_open_boundaries_get_them_on_request_only(open_field, tmp_path, capsys, form):
    arguments = ["convert", str(open_field), str(tmp_path / "copy"), "--format", form]
    assert main(arguments) == 2
    assert "--open-boundaries" in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()
    assert main([*arguments, "--open-boundaries"]) == 0
    assert "open boundaries" in capsys.readouterr().err
    copy = read(tmp_path / "copy")
    assert np.array_equal(copy.links, read(open_field).links)
    # The way back needs no permission
    convert(tmp_path / "copy", tmp_path / "back", "openqcd")
    assert (tmp_path / "back").read_bytes() == open_field.read_bytes()


def test_inspect_names_boundaries(open_field, tmp_path, make_links, capsys):
    links = make_links(DIMS)
    write(tmp_path / "periodicn1", Configuration(links), "openqcd")
    for mu in range(3):
        links[0, ..., mu, :, :] = np.diag(np.exp(1j * np.array([0.1, 0.2, -0.3]) * (mu + 1)))
    write(tmp_path / "functionaln1", Configuration(links), "openqcd")
    expected = {"runn1": "open", "periodicn1": None, "functionaln1": "schroedinger"}
    for name, boundary in expected.items():
        assert inspect(tmp_path / name)["boundary"] == boundary
    files = [str(tmp_path / name) for name in expected]
    assert main(["inspect", "--json", *files]) == 0
    assert [one["boundary"] for one in json.loads(capsys.readouterr().out)] == [*expected.values()]
    assert main(["inspect", files[0]]) == 0
    assert "boundaries     open in time" in capsys.readouterr().out
    assert main(["inspect", "--brief", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "open in time" in lines[0] and "Schroedinger" in lines[2]
    assert not any(word in lines[1] for word in ("in time", "functional "))


def conjugated_plaquette(links, direction=0):
    """The mean plaquette with charge conjugation at the boundary in x."""
    axis = {0: 3, 1: 2, 2: 1, 3: 0}

    def ahead(links, mu):
        moved = np.roll(links, -1, axis[mu])
        if mu == direction:
            last = [slice(None)] * moved.ndim
            last[axis[mu]] = -1
            moved[tuple(last)] = moved[tuple(last)].conj()
        return moved

    total = 0.0
    for mu in range(4):
        for nu in range(mu):
            u, v = links[..., mu, :, :], links[..., nu, :, :]
            product = u @ ahead(v, mu) @ ahead(u, nu).conj().swapaxes(-1, -2)
            total += np.trace(product @ v.conj().swapaxes(-1, -2), axis1=-2, axis2=-1).real.mean()
    return total / 18


@pytest.mark.parametrize("said", [True, False])
def test_plaquettes_of_charge_conjugated_boundaries(tmp_path, make_links, said, capsys):
    """As Grid and CPS write them: only some headers tell."""
    links = make_links(DIMS)
    path = tmp_path / "lat.4"
    metadata = {"BOUNDARY_1": "GPARITY"} if said else {}
    write(path, Configuration(links, metadata), "nersc")
    content = path.read_bytes()
    line = next(one for one in content.split(b"\n") if one.startswith(b"PLAQUETTE"))
    stored = b"PLAQUETTE = %16.12f" % conjugated_plaquette(links)
    path.write_bytes(content.replace(line, stored, 1))
    if said:
        assert main(["inspect", str(path)]) == 0
        out = capsys.readouterr().out
        assert "charge conjugation" in out and "not compared" in out
        assert inspect(path)["boundary"] == "charge conjugation"
        read(path)
        return
    assert main(["inspect", "--brief", str(path)]) == 1
    out = capsys.readouterr().out
    assert "G-parity, C* or open-SF" in out and "--ignore-checksum" in out
    with pytest.raises(CheckError, match=r"G-parity.*check_checksum=False"):
        read(path)
    # Where the links are to blame it does not say so
    path.write_bytes(path.read_bytes()[:-300] + bytes(8) + path.read_bytes()[-292:])
    assert main(["inspect", "--brief", str(path)]) == 1
    assert "G-parity" not in capsys.readouterr().out


def test_open_boundaries_in_python(open_field, tmp_path):
    with pytest.raises(FormatError, match="open_boundaries=True"):
        convert(open_field, tmp_path / "copy", "nersc")
    converted = convert(open_field, tmp_path / "copy", "nersc", open_boundaries=True)
    assert any("was written" in warning for warning in converted.warnings)
    said = write(tmp_path / "copy", read(open_field), "nersc")
    assert any("was written" in warning for warning in said)
    assert write(tmp_path / "copy", read(open_field), "openqcd") == []
