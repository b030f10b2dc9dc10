"""Files with several configurations: FILE#N reads any of them, through every door."""

import h5py
import numpy as np
import pytest
from flowmc_adapters import (
    Configuration,
    FieldConfiguration,
    FormatError,
    append_field,
    convert,
    field_numbers,
    inspect,
    read,
    read_field,
    read_header,
    write,
    write_field,
)
from flowmc_adapters.cli import main

DIMS = (2, 2, 2, 4)


@pytest.fixture
def fields(make_links):
    return [make_links(DIMS, seed=seed) for seed in (1, 2, 3)]


@pytest.fixture(params=["ildg", "scidac", "hdf5"])
def several(request, tmp_path, fields):
    """Three configurations in one file, LIME or HDF5."""
    path = tmp_path / ("all.h5" if request.param == "hdf5" else "all.lime")
    if request.param == "hdf5":
        with h5py.File(path, "w") as file:
            for i, links in enumerate(fields):
                file[f"b{i}/links"] = links
        return path
    content = b""
    for i, links in enumerate(fields):
        write(path, Configuration(links, {"SEQUENCE_NUMBER": str(10 * i)}), request.param)
        content += path.read_bytes()
    path.write_bytes(content)
    return path


def test_every_configuration_can_be_read(several, fields):
    for i, links in enumerate(fields, start=1):
        found = read(f"{several}#{i}")
        assert np.array_equal(found.links, links)
        assert not any("several" in text or "records" in text for text in found.warnings)
        assert read_header(f"{several}#{i}").dims == DIMS
        assert inspect(f"{several}#{i}")["error"] is None
        if several.suffix == ".lime":
            assert found.checksum.ok and found.number == 10 * (i - 1)
    first = read(several)
    assert np.array_equal(first.links, fields[0])
    assert any("FILE#N" in warning for warning in first.warnings)


@pytest.mark.parametrize("wrong", ["#0", "#4", "#/none", "#x"])
def test_what_is_not_there_is_refused(several, tmp_path, wrong, capsys):
    with pytest.raises(FormatError, match="selects n"):
        read(f"{several}{wrong}")
    assert main(["inspect", f"{several}{wrong}"]) == 2
    assert main(["convert", f"{several}{wrong}", str(tmp_path / "x"), "--format", "npy"]) == 2
    assert not (tmp_path / "x").exists()


def test_convert_and_inspect_by_selection(several, fields, tmp_path, capsys):
    sources = [f"{several}#{i}" for i in (1, 2, 3)]
    assert main(["inspect", "--brief", *sources]) == 0
    assert "3 files: 3 ok" in capsys.readouterr().out
    assert main(["convert", *sources, str(tmp_path / "new"), "--format", "nersc"]) == 0
    for i, links in enumerate(fields, start=1):
        assert np.array_equal(read(tmp_path / "new" / f"all_{i}.nersc").links, links)
    convert(sources[1], tmp_path / "one", "ildg")
    assert np.array_equal(read(tmp_path / "one").links, fields[1])


def test_datasets_are_selected_by_name_as_well(tmp_path, fields):
    path = tmp_path / "all.h5"
    with h5py.File(path, "w") as file:
        file["smeared/links"] = fields[0]
        for mu, name in enumerate("XYZT"):
            file[f"thin/{name}"] = fields[1][..., mu, :, :]
    assert np.array_equal(read(f"{path}#/smeared/links").links, fields[0])
    assert np.array_equal(read(f"{path}#/thin").links, fields[1])
    assert np.array_equal(read(f"{path}#/thin/Y").links, fields[1])


def test_names_with_that_mark_mean_themselves(tmp_path, fields):
    write(tmp_path / "lat#2", Configuration(fields[0]), "nersc")
    write(tmp_path / "lat", Configuration(fields[1]), "nersc")
    assert np.array_equal(read(tmp_path / "lat#2").links, fields[0])
    with pytest.raises(FormatError, match="hold one configuration: leave out #1"):
        read(tmp_path / "lat#1")
    with pytest.raises(FileNotFoundError, match="none#1"):
        read(tmp_path / "none#1")


def test_scalar_fields_by_selection(tmp_path, capsys):
    values = [np.random.default_rng(i).normal(size=(4, 6)) for i in (1, 2)]
    fields = [FieldConfiguration(one, "scalar") for one in values]
    for number, field in zip((10, 20), fields, strict=True):
        append_field(tmp_path / "phi.h5", field, number)
    assert np.array_equal(read_field(tmp_path / "phi.h5#20").values, values[1])
    assert field_numbers(tmp_path / "phi.h5#20") == [20]
    assert inspect(tmp_path / "phi.h5#20")["number"] == 20
    with pytest.raises(FormatError, match="no configuration 15"):
        read_field(tmp_path / "phi.h5#15")
    with pytest.raises(FormatError, match="number 10 was asked for"):
        read_field(tmp_path / "phi.h5#20", number=10)
    # One LIME file behind the other is a LIME file
    content = b""
    for field in fields:
        write_field(tmp_path / "one.lime", field, "ildg")
        content += (tmp_path / "one.lime").read_bytes()
    path = tmp_path / "phi.lime"
    path.write_bytes(content)
    for i, one in enumerate(values, start=1):
        found = read_field(f"{path}#{i}")
        assert np.array_equal(found.values, one) and found.checksum.ok
        assert found.warnings == []
    assert any("FILE#N" in warning for warning in read_field(path).warnings)
    with pytest.raises(FormatError, match=r"there are 2, #1 to #2"):
        read_field(f"{path}#3")
    source = f"{path}#2"
    assert main(["convert", source, str(tmp_path / "phi.npy"), "--format", "npy"]) == 0
    assert np.array_equal(np.load(tmp_path / "phi.npy"), values[1])


def test_real_file_with_several_records(real_file):
    path = real_file("scidac/qdpxx-t_qio.intel-scalar.lime")
    assert read(f"{path}#1").checksum.computed == "d716ee56 7d701386"
    with pytest.raises(FormatError, match="there is one"):
        read(f"{path}#2")
