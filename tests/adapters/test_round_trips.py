"""Every format writes what it reads: all bits of the links, and the metadata it has room for."""

import numpy as np
import pytest
from flowmc_adapters import Configuration, convert, formats, read, write
from flowmc_adapters.layout import last_row

FORMATS = ["nersc", "ildg", "scidac", "npy"]


def test_the_list_above_is_complete():
    assert set(FORMATS) <= set(formats())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("precision", [32, 64])
@pytest.mark.parametrize("nc", [2, 3, 4])
def test_links_survive_bit_by_bit(tmp_path, make_configuration, format, precision, nc):
    configuration = make_configuration(nc=nc, precision=precision)
    configuration.links[0, 0, 0, 0, 0, 0, 1] = -0.0
    configuration.links[0, 0, 0, 0, 0, 1, 0] = 1e-40  # subnormal in 32 bit
    write(tmp_path / "first", configuration, format)
    again = read(tmp_path / "first")
    assert again.format == format
    assert again.precision == precision
    assert again.links.tobytes() == configuration.links.tobytes()
    assert again.checksum is None or again.checksum.ok
    write(tmp_path / "second", again, format)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_conversion_between_any_two(tmp_path, make_configuration, source, target):
    metadata = {"SEQUENCE_NUMBER": "1040", "ENSEMBLE_ID": "b6.0", "MY_KEY": "a = b, <c>"}
    configuration = make_configuration(metadata=metadata)
    write(tmp_path / "source", configuration, source)
    conversion = convert(tmp_path / "source", tmp_path / "target", target)
    assert (conversion.source_format, conversion.format) == (source, target)
    result = read(tmp_path / "target")
    assert result.links.tobytes() == configuration.links.tobytes()
    if "npy" not in (source, target):
        assert conversion.number == result.number == 1040
        assert metadata.items() <= result.metadata.items()
        assert conversion.warnings == []


@pytest.mark.parametrize("format", FORMATS)
def test_precision_changes_only_when_asked(tmp_path, make_configuration, format):
    configuration = make_configuration()
    write(tmp_path / "double", configuration, format)
    rounded = convert(tmp_path / "double", tmp_path / "single", format, precision=32)
    assert (rounded.source_precision, rounded.precision) == (64, 32)
    assert any("rounded from 64 to 32" in warning for warning in rounded.warnings)
    single = read(tmp_path / "single").links
    assert np.array_equal(single, configuration.links.astype(np.complex64))
    widened = convert(tmp_path / "single", tmp_path / "wide", format, precision=64)
    assert not any("rounded" in warning for warning in widened.warnings)
    assert np.array_equal(read(tmp_path / "wide").links, single)
    kept = convert(tmp_path / "single", tmp_path / "kept", format)
    assert kept.precision == 32


@pytest.mark.parametrize("format", FORMATS)
def test_equal_input_gives_equal_bytes(tmp_path, make_configuration, format):
    for name in ("a", "b"):
        write(tmp_path / name, make_configuration(metadata={"SEQUENCE_NUMBER": "3"}), format)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_may_be_converted_onto_itself(tmp_path, make_configuration):
    configuration = make_configuration()
    write(tmp_path / "conf", configuration, "nersc")
    convert(tmp_path / "conf", tmp_path / "conf", "ildg")
    again = read(tmp_path / "conf")
    assert again.format == "ildg"
    assert again.links.tobytes() == configuration.links.tobytes()


def test_metadata_can_be_set_while_converting(tmp_path, make_configuration):
    write(tmp_path / "a", make_configuration(), "ildg")
    convert(tmp_path / "a", tmp_path / "b", "nersc", metadata={"SEQUENCE_NUMBER": "5"})
    assert read(tmp_path / "b").number == 5


def test_links_need_not_be_contiguous(tmp_path, make_links):
    links = make_links()
    shuffled = np.ascontiguousarray(links.swapaxes(0, 3)).swapaxes(0, 3)
    assert not shuffled.flags.c_contiguous
    for format in FORMATS:
        write(tmp_path / "a", Configuration(shuffled), format)
        assert np.array_equal(read(tmp_path / "a").links, links)


@pytest.mark.parametrize("nc", [2, 3, 4, 5])
def test_last_row_completes_the_matrix(make_links, nc):
    links = make_links((2, 2, 2, 2), nc=nc)
    assert np.abs(last_row(links[..., :-1, :]) - links[..., -1, :]).max() < 1e-13


@pytest.mark.parametrize(
    "links",
    [
        np.zeros((2, 2, 2, 2, 4, 3, 3)),
        np.zeros((2, 2, 2, 2, 3, 3, 3), complex),
        np.zeros((2, 2, 2, 2, 4, 3, 2), complex),
        np.zeros((0, 2, 2, 2, 4, 3, 3), complex),
    ],
)
def test_arrays_that_are_no_gauge_field(links):
    with pytest.raises(ValueError, match="links must"):
        Configuration(links)


@pytest.mark.parametrize("format", FORMATS)
def test_unknown_precision(tmp_path, make_configuration, format):
    with pytest.raises(ValueError, match="precision must be 32 or 64"):
        write(tmp_path / "a", make_configuration(), format, precision=16)
