"""Configuration files <-> fields: axis order, precision, and files that do not fit."""

import flowmc_adapters
import numpy as np
import pytest
import torch
from flowmc_adapters import FormatError

from flowmc.actions import Phi4, Wilson
from flowmc.io import (
    field_to_file_order,
    file_order_to_field,
    load_field,
    number_in_name,
    read_field,
    write_field,
)
from flowmc.observables import plaquette
from flowmc.random import stream

SU3 = Wilson("SU(3)", [4, 2, 6, 8], beta=6.0)
U1 = Wilson("U(1)", [4, 6], beta=2.0)
SCALAR = Phi4([4, 6, 2], m2=1.0, lam=0.1)


def test_file_order_is_that_of_ildg():
    """U[t, z, y, x, mu] of the file is field[mu, x, y, z, t], entry by entry."""
    shape = SU3.field_shape(1)[1:]
    field = np.arange(np.prod(shape), dtype=float).reshape(shape)
    array = field_to_file_order(field, SU3)
    assert array.shape == (8, 6, 2, 4, 4, 3, 3)
    for x, y, z, t, mu in ((3, 1, 5, 7, 0), (1, 0, 2, 3, 1), (0, 1, 4, 6, 2), (2, 0, 0, 1, 3)):
        np.testing.assert_array_equal(array[t, z, y, x, mu], field[mu, x, y, z, t])
    np.testing.assert_array_equal(file_order_to_field(array, SU3), field)


@pytest.mark.parametrize("action", [U1, SCALAR], ids=["U(1)", "scalar"])
def test_real_fields_follow_the_same_rule(action):
    shape = action.field_shape(1)[1:]
    field = np.arange(np.prod(shape), dtype=float).reshape(shape)
    array = field_to_file_order(field, action)
    if action.is_gauge:
        assert array.shape == (6, 4, 2)
        assert array[5, 3, 1] == field[1, 3, 5]
    else:
        assert array.shape == (2, 6, 4)
        assert array[1, 5, 2] == field[2, 5, 1]
    np.testing.assert_array_equal(file_order_to_field(array, action), field)


@pytest.mark.parametrize("form", ["nersc", "ildg", "scidac", "npy", "npz", "hdf5"])
def test_double_precision_links_come_back_bit_for_bit(tmp_path, form):
    field = SU3.hot(1, stream(1, 0, "io"))
    write_field(tmp_path / "lat.7", field, SU3, format=form, metadata={"SEQUENCE_NUMBER": "7"})
    stored = load_field(tmp_path / "lat.7", SU3)
    assert torch.equal(stored.field, field)
    assert (stored.format, stored.precision, stored.number) == (form, 64, 7)
    assert stored.notes == ()
    # The adapters' plaquette knows nothing of fields: it would see permuted axes or directions.
    own = float(plaquette(field, SU3)[0])
    assert flowmc_adapters.inspect(tmp_path / "lat.7")["plaquette"] == pytest.approx(own, abs=1e-12)


@pytest.mark.parametrize("action", [U1, SCALAR], ids=["U(1)", "scalar"])
def test_real_fields_come_back_bit_for_bit(tmp_path, action):
    field = action.hot(1, stream(1, 0, "io"))
    write_field(tmp_path / "conf.npy", field, action, format="npy")
    assert torch.equal(read_field(tmp_path / "conf.npy", action), field)
    with pytest.raises(FormatError, match="use one of hdf5, ildg, lime, npy"):
        write_field(tmp_path / "conf", field, action, format="nersc")


@pytest.mark.parametrize("action", [U1, SCALAR], ids=["U(1)", "scalar"])
@pytest.mark.parametrize("form", ["hdf5", "ildg"])
def test_real_fields_with_metadata_and_checksum(tmp_path, action, form):
    field = action.hot(1, stream(1, 0, "io"))
    path = tmp_path / "conf"
    metadata = {"SEQUENCE_NUMBER": "40", "ENSEMBLE_ID": "test"}
    write_field(path, field, action, format=form, metadata=metadata)
    stored = load_field(path, action)
    assert torch.equal(stored.field, field)
    assert (stored.number, stored.precision, stored.metadata) == (40, 64, metadata)
    assert stored.notes == ()
    report = flowmc_adapters.inspect(path)
    assert (report["kind"], report["number"]) == ("u1" if action.is_gauge else "scalar", 40)
    assert report["dims"] == list(action.lattice)
    if action.is_gauge:
        own = float(plaquette(field, action)[0])
        assert report["plaquette"] == pytest.approx(own, abs=1e-12)
    with pytest.raises(FormatError, match="kind"):
        load_field(path, SCALAR if action is U1 else U1)
    with pytest.raises(FormatError, match="needs"):
        load_field(path, other_lattice(action))
    damaged = bytearray(path.read_bytes())
    start = damaged.index(flowmc_adapters.read_field(path).values.astype(
        "<f8" if form == "hdf5" else ">f8").tobytes())  # fmt: skip
    damaged[start + 100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(FormatError, match="checksum"):
        load_field(path, action)


def other_lattice(action):
    """A theory of the same kind on another lattice."""
    if action is U1:
        return Wilson("U(1)", [6, 4], beta=2.0)
    return Phi4([4, 2, 6], m2=1.0, lam=0.1)


def test_one_configuration_of_an_ensemble_file(tmp_path):
    fields = [SCALAR.hot(1, stream(seed, 0, "io")) for seed in (1, 2)]
    for number, field in zip((10, 20), fields, strict=True):
        values = field_to_file_order(field[0].numpy(), SCALAR)
        flowmc_adapters.append_field(
            tmp_path / "e.h5", flowmc_adapters.FieldConfiguration(values), number
        )
    stored = load_field(tmp_path / "e.h5", SCALAR, number=20)
    assert torch.equal(stored.field, fields[1]) and stored.number == 20
    with pytest.raises(FormatError, match="say which"):
        load_field(tmp_path / "e.h5", SCALAR)


def test_single_precision_links_are_projected_and_said_so(tmp_path):
    field = SU3.hot(1, stream(1, 0, "io"))
    write_field(tmp_path / "lat", field, SU3, format="nersc", precision=32)
    stored = load_field(tmp_path / "lat", SU3)
    assert stored.precision == 32 and "projected" in stored.notes[-1]
    links = stored.field
    identity = torch.eye(3, dtype=links.dtype)
    assert (links @ links.mH - identity).abs().max() < 1e-14
    assert 1e-9 < (links - field).abs().max() < 1e-6


def test_rounding_to_the_precision_of_the_run_is_said(tmp_path):
    write_field(tmp_path / "a.npy", SCALAR.hot(1, stream(1, 0, "io")), SCALAR, format="npy")
    stored = load_field(tmp_path / "a.npy", SCALAR, dtype=torch.float32)
    assert stored.field.dtype == torch.float32
    assert "rounded" in stored.notes[0]


def test_angles_are_mapped_to_one_period(tmp_path):
    angles = np.full((6, 4, 2), 4.0)
    flowmc_adapters.write_array(tmp_path / "a.npy", angles)
    stored = load_field(tmp_path / "a.npy", U1)
    assert torch.allclose(stored.field, torch.full((1, 2, 4, 6), 4.0 - 2 * np.pi).double())
    assert "mapped" in stored.notes[0]


def test_files_that_do_not_fit_are_refused(tmp_path):
    hot = SU3.hot(1, stream(1, 0, "io"))
    path = tmp_path / "lat.1"
    write_field(path, hot, SU3, format="nersc")
    with pytest.raises(FormatError, match=r"4x2x6x8 lattice.*lattice = 8x2x6x4"):
        read_field(path, Wilson("SU(3)", [8, 2, 6, 4], beta=6.0))
    with pytest.raises(FormatError, match=r"SU\(3\) links.*SU\(2\)"):
        read_field(path, Wilson("SU(2)", [4, 2, 6, 8], beta=6.0))
    with pytest.raises(FormatError, match="npy"):
        read_field(path, SCALAR)

    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(FormatError, match="truncated"):
        read_field(path, SU3)
    damaged = bytearray(whole)
    damaged[-1000] ^= 64
    path.write_bytes(damaged)
    with pytest.raises(FormatError, match="checksum"):
        read_field(path, SU3)

    scaled = field_to_file_order((1.01 * hot[0]).numpy(), SU3)
    flowmc_adapters.write(path, flowmc_adapters.Configuration(scaled), "nersc")
    with pytest.raises(FormatError, match=r"not in SU\(3\)"):
        read_field(path, SU3)
    # Antiperiodic fermion boundaries left in the links: invisible to the plaquette.
    signed = field_to_file_order(hot[0].numpy(), SU3)
    signed[-1, :, :, :, 3] *= -1
    flowmc_adapters.write(path, flowmc_adapters.Configuration(signed), "nersc")
    stored = load_field(path, SU3)
    assert torch.equal(stored.field, hot) and stored.signs == (3,)
    assert any("sign was taken off" in note for note in stored.notes)
    # Determinants of -1 elsewhere are no boundary condition.
    signed[-2, :, :, :, 3] *= -1
    flowmc_adapters.write(path, flowmc_adapters.Configuration(signed), "nersc")
    with pytest.raises(FormatError, match=r"not in SU\(3\)"):
        read_field(path, SU3)

    flowmc_adapters.write_array(tmp_path / "c.npy", np.zeros((2, 6, 4), complex))
    with pytest.raises(FormatError, match="complex"):
        read_field(tmp_path / "c.npy", SCALAR)


def test_nothing_unsound_is_written(tmp_path):
    field = SCALAR.cold(1)
    field[0, 0, 0, 0] = float("nan")
    with pytest.raises(FormatError, match="not finite"):
        write_field(tmp_path / "a.npy", field, SCALAR, format="npy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("lat.1000", 1000),
        ("runs/ens-b6.0.0042", 42),
        ("run1n250", 250),
        ("conf_17.lime", 17),
        ("conf-3.npy", 3),
        ("12.npy", 12),
        ("weak_field.lime", None),
        ("lattice_su3", None),
        ("conf.npy", None),
    ],
)
def test_numbers_in_names(name, number):
    assert number_in_name(name) == number
