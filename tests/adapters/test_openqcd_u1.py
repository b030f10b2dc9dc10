"""openQ*D's exported configurations with a U(1) field, made from its description."""

import json
import math
import struct

import numpy as np
import pytest
from flowmc_adapters import CheckError, FormatError, examine, read, read_field, write
from flowmc_adapters.cli import main

DIMS = (2, 4, 6, 8)


@pytest.fixture
def angles():
    return np.random.default_rng(3).normal(size=(*reversed(DIMS), 4))


def reference_plaquette(angles):
    """Mean of cos of the angle around each of the 6V plaquettes, site by site."""
    lattice, cosines = angles.shape[:4], []
    steps = {0: (0, 0, 0, 1), 1: (0, 0, 1, 0), 2: (0, 1, 0, 0), 3: (1, 0, 0, 0)}

    def angle(site, mu):
        return angles[(*(n % extent for n, extent in zip(site, lattice, strict=True)), mu)]

    for site in np.ndindex(*lattice):
        for mu in range(4):
            for nu in range(mu):
                there = np.add(site, steps[mu]), np.add(site, steps[nu])
                around = angle(site, mu) + angle(there[0], nu) - angle(there[1], mu)
                cosines.append(math.cos(around - angle(site, nu)))
    return math.fsum(cosines) / len(cosines)


def u1_part(angles):
    """Plaquette, then for every odd site, z fastest, the angles +0, -0, ..., +3, -3."""
    lt, lz, ly, lx = angles.shape[:4]
    content = bytearray(struct.pack("<d", reference_plaquette(angles)))
    for t, x, y, z in np.ndindex(lt, lx, ly, lz):
        if (t + x + y + z) % 2 == 1:
            for mu, (dt, dx, dy, dz) in zip((3, 0, 1, 2), np.eye(4, dtype=int), strict=True):
                back = angles[(t - dt) % lt, (z - dz) % lz, (y - dy) % ly, (x - dx) % lx, mu]
                content += struct.pack("<2d", angles[t, z, y, x, mu], back)
    return bytes(content)


@pytest.fixture
def both(tmp_path, make_configuration, angles):
    """SU(3) x U(1)."""
    path = tmp_path / "runn7"
    write(path, make_configuration(DIMS), "openqcd")
    path.write_bytes(path.read_bytes() + u1_part(angles))
    return path


@pytest.fixture
def alone(tmp_path, angles):
    """U(1)."""
    path = tmp_path / "qedn7"
    lx, ly, lz, lt = DIMS
    path.write_bytes(struct.pack("<4i", lt, lx, ly, lz) + u1_part(angles))
    return path


def test_the_u1_field_is_not_lost_without_a_word(both, make_links, tmp_path, capsys):
    with pytest.raises(CheckError, match=r"SU\(3\) links and a U\(1\) field"):
        read(both)
    convert = ["convert", str(both), str(tmp_path / "conf"), "--format", "ildg"]
    assert main(convert) == 1
    assert "--layout su3" in capsys.readouterr().err
    assert not (tmp_path / "conf").exists()
    assert main([*convert, "--layout", "su3"]) == 0
    assert "U(1) field of this file is left out" in capsys.readouterr().err
    assert np.array_equal(read(tmp_path / "conf").links, make_links(DIMS))
    assert np.array_equal(read(both, layout="su3").links, make_links(DIMS))


@pytest.mark.parametrize("fixture", ["both", "alone"])
def test_the_u1_field_can_be_read_and_converted(fixture, request, tmp_path, angles):
    path = request.getfixturevalue(fixture)
    field = read_field(path)
    assert (field.kind, field.dims) == ("u1", DIMS)
    assert np.array_equal(field.values, angles)
    convert = ["convert", str(path), str(tmp_path / "conf"), "--format", "hdf5", "--layout", "u1"]
    assert main(convert) == 0
    copy = read_field(tmp_path / "conf")
    assert np.array_equal(copy.values, angles)
    assert copy.number == 7


def test_inspection(both, alone, angles, capsys):
    assert main(["inspect", "--json", str(both), str(alone)]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["kind"], second["kind"]) == ("gauge", "u1")
    plaquette = f"U(1) plaquette {reference_plaquette(angles):.12f}"
    assert plaquette in first["warnings"]
    assert second["plaquette"] == pytest.approx(reference_plaquette(angles), abs=1e-14)


@pytest.mark.parametrize("fixture", ["both", "alone"])
def test_damage_to_the_u1_field(fixture, request):
    path = request.getfixturevalue(fixture)
    content = bytearray(path.read_bytes())
    content[-2] ^= 0x40  # the exponent of an angle
    path.write_bytes(content)
    assert examine(path).status == 1
    with pytest.raises(CheckError, match=r"U\(1\) plaquette|not a finite"):
        read_field(path)
    assert "plaquette" in read_field(path, check_checksum=False).failed_checks
    path.write_bytes(content[:-8])
    with pytest.raises(FormatError, match=r"bytes follow|truncated"):
        read(path)


@pytest.mark.parametrize("fixture", ["both", "alone"])
def test_a_u1_field_that_is_not_finite(fixture, request, capsys):
    path = request.getfixturevalue(fixture)
    raw = bytearray(path.read_bytes())
    raw[-8:] = struct.pack("<d", math.nan)
    path.write_bytes(raw)
    assert main(["inspect", "--json", str(path)]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert any("finite" in text for text in [*report["warnings"], report["error"] or ""])


def test_layouts_of_files_without_it(tmp_path, make_configuration, make_links):
    path = tmp_path / "conf"
    write(path, make_configuration(DIMS), "openqcd")
    with pytest.raises(FormatError, match=r"no U\(1\) field"):
        read(path, layout="u1")
    with pytest.raises(FormatError, match=r"SU\(N\) links"):
        read_field(path)
    assert np.array_equal(read(path, layout="su3").links, make_links(DIMS))
