"""Every format writes what it reads: all bits of the links, and the metadata it has room for.

All ordered pairs of formats that can be written, those of installed packages included.
"""

import itertools
import re

import numpy as np
import pytest
from flowmc_adapters import (
    CheckError,
    Configuration,
    FormatError,
    convert,
    formats,
    read,
    read_header,
    write,
)
from flowmc_adapters.layout import last_row

# All different, all even: openQCD stores even and odd sites. Lx is not 4, which could be taken for
# the number of directions in files without a header.
DIMS = (6, 2, 4, 8)
METADATA = {"SEQUENCE_NUMBER": "1040", "ENSEMBLE_ID": "b6.0", "MY_KEY": "a = b, <c>"}
# Formats with a place for everything in it
FULL = ("nersc", "ildg", "scidac")


NUMBERED = {}  # format: whether it keeps a number


@pytest.fixture
def keeps_number(tmp_path, make_configuration, equal_precision):
    """Whether a format has a place for the configuration number; if not, it must say so."""

    def ask(format):
        if format in NUMBERED:
            return NUMBERED[format]
        path = tmp_path / "number"
        field = make_configuration(
            (2, 2, 2, 2), precision=equal_precision(format), metadata={"SEQUENCE_NUMBER": "7"}
        )
        warnings = write(path, field, format)
        kept = read(path).number
        assert kept == 7 or (kept is None and any("SEQUENCE_NUMBER" in text for text in warnings))
        NUMBERED[format] = kept == 7
        return NUMBERED[format]

    return ask


def written(path, configuration, format, **kwargs):
    """Write, or skip where the format cannot hold the field and says so."""
    try:
        return write(path, configuration, format, **kwargs)
    except FormatError as error:
        assert str(path) in str(error)
        pytest.skip(error.reason)


def test_the_usual_formats_can_be_written():
    assert {*FULL, "npy"} <= {name for name, format in formats().items() if format.writable}


@pytest.mark.parametrize("nc", [2, 3, 4])
def test_links_survive_bit_by_bit(tmp_path, make_configuration, writable_at, nc):
    format, precision = writable_at
    configuration = make_configuration(DIMS, nc=nc, precision=precision)
    configuration.links[0, 0, 0, 0, 0, 0, 1] = -0.0
    configuration.links[0, 0, 0, 0, 0, 1, 0] = 1e-40  # subnormal in 32 bit
    written(tmp_path / "first", configuration, format)
    again = read(tmp_path / "first")
    assert again.format == format
    assert again.precision == precision
    assert again.links.tobytes() == configuration.links.tobytes()
    assert again.checksum is None or again.checksum.ok
    assert again.failed_checks == {}
    write(tmp_path / "second", again, format)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_there_and_back(tmp_path, make_configuration, round_trip):
    """A -> B -> A at equal precision: every bit, and the very file if nothing else was lost."""
    source_format, target_format, precision, nc = round_trip
    configuration = make_configuration(DIMS, nc=nc, precision=precision)
    first, between, back = (tmp_path / name for name in ("first", "between", "back"))
    written(first, configuration, source_format)
    try:
        there = convert(first, between, target_format)
    except FormatError as error:
        assert nc != 3
        pytest.skip(error.reason)
    again = convert(between, back, source_format)
    assert (there.source_format, there.format) == (source_format, target_format)
    assert (again.source_precision, again.precision) == (precision, precision)
    assert read(between).links.tobytes() == configuration.links.tobytes()
    result = read(back)
    assert result.links.tobytes() == configuration.links.tobytes()
    assert result.failed_checks == {}
    assert result.checksum is None or result.checksum.ok


def test_precisions_that_differ_need_to_be_asked_for(
    tmp_path, make_configuration, equal_precision, source_format, target_format
):
    """32-bit formats refuse 64-bit links unless told to round; widening only warns."""
    if equal_precision(source_format, target_format) is not None:
        pytest.skip("the two formats have a precision in common")
    own, other = equal_precision(source_format), equal_precision(target_format)
    first, between, back = (tmp_path / name for name in ("first", "between", "back"))
    configuration = make_configuration(DIMS, precision=own)
    write(first, configuration, source_format)
    if own == 64:
        with pytest.raises(FormatError, match="precision=32"):
            convert(first, between, target_format)
        assert not between.exists()
        done = convert(first, between, target_format, precision=32)
        assert any("rounded" in warning for warning in done.warnings)
        assert np.array_equal(read(between).links, configuration.links.astype(np.complex64))
        return
    done = convert(first, between, target_format)
    assert (done.source_precision, done.precision, other) == (32, 64, 64)
    assert any("widened" in warning for warning in done.warnings)
    assert read(between).links.dtype == np.complex128
    with pytest.raises(FormatError, match="precision=32"):
        convert(between, back, source_format)
    convert(between, back, source_format, precision=32)
    assert read(back).links.tobytes() == configuration.links.tobytes()


def test_configuration_numbers_survive_where_there_is_a_place(
    tmp_path, make_configuration, equal_precision, keeps_number, source_format, target_format
):
    precision = equal_precision(source_format, target_format)
    if precision is None or not keeps_number(source_format) or not keeps_number(target_format):
        pytest.skip("one of the two formats has no place for it, or no common precision")
    configuration = make_configuration(DIMS, precision=precision, metadata=METADATA)
    write(tmp_path / "first", configuration, source_format)
    there = convert(tmp_path / "first", tmp_path / "between", target_format)
    back = convert(tmp_path / "between", tmp_path / "back", source_format)
    assert there.number == back.number == read(tmp_path / "back").number == 1040
    if source_format in FULL and target_format in FULL:
        assert METADATA.items() <= read(tmp_path / "back").metadata.items()
        assert there.warnings == []


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("nersc", {}),
        ("nersc", {"style": "cps"}),
        *(
            (format, {"style": style})
            for format in ("scidac", "ildg")
            for style in ("universal", "qio")
        ),
        ("ildg", {"style": "tmlqcd"}),
        ("milc", {}),
        ("npy", {}),
        ("npz", {}),
        *(("hdf5", {"style": style}) for style in ("flowmc", "pyquda", "qdp++")),
    ],
)
def test_no_letter_of_the_metadata_changes_without_a_word(
    tmp_path, make_configuration, format, options
):
    """Also what a command line in another encoding than the terminal's gives."""
    metadata = {
        "CREATOR": "Jürgen 中",
        "ENSEMBLE_LABEL": "J\udcfcrgen",
        "MACHINE-NAME": "Jülich",
        "Annotation": "J\ud800lich",
        "action.description": '"Lüscher-Weisz"',
        "time_stamp": "März " + 40 * "é",
        "scidac-file-xml": "<title>\ud800</title>",
        "xlf-info": "place = Jülich",
    }
    field = make_configuration((2, 2, 2, 2), precision=32, metadata=dict(metadata))
    warnings = write(tmp_path / "file", field, format, **options)
    again = read(tmp_path / "file").metadata
    for key, value in metadata.items():
        assert again.get(key) == value or any(key in text for text in warnings), key
    if format != "nersc":  # ASCII
        assert again.get("CREATOR") in (metadata["CREATOR"], None)


def ways_of_writing():
    """Every option of every format, from every format: each from a third of them every time."""
    options = [
        (name, option, value)
        for name, format in formats().items()
        if format.writable
        for option, values in format.options.items()
        for value in values
    ]
    sources = [name for name, format in formats().items() if format.writable]
    return [
        pytest.param(source, *way, marks=() if (row + column) % 3 == 0 else pytest.mark.slow)
        for (row, way), (column, source) in itertools.product(
            enumerate(options), enumerate(sources)
        )
    ]


def demands(path, make_configuration, format, options, precision=64):
    """Precision and options that go with some options, found by doing what the errors ask for."""
    options = dict(options)
    for _ in range(4):
        try:
            write(path, make_configuration(DIMS, precision=precision), format, **options)
            return precision, options
        except FormatError as error:
            name, wanted = re.search(r"ask for (\w+)=(\w+)", error.reason).groups()
        if name == "precision":
            precision = int(wanted)
        else:
            options[name] = wanted
    raise AssertionError(f"{format} is never satisfied: {options}")


@pytest.mark.parametrize(("source", "target", "option", "value"), ways_of_writing())
def test_every_way_of_writing(
    tmp_path, make_configuration, equal_precision, source, target, option, value
):
    precision, options = demands(tmp_path / "probe", make_configuration, target, {option: value})
    if precision not in equal_precision(source, all=True):
        precision = equal_precision(source, target)
        if precision is None or demands(
            tmp_path / "probe", make_configuration, target, options, precision
        ) != (precision, options):
            pytest.skip("no common precision")
    configuration = make_configuration(DIMS, precision=precision, metadata=METADATA)
    write(tmp_path / "first", configuration, source)
    done = convert(tmp_path / "first", tmp_path / "between", target, options=options)
    convert(tmp_path / "between", tmp_path / "back", source)
    layout = read_header(tmp_path / "between").layout
    rows = 3 if layout is None else layout.rows
    # Rows that a style leaves out come back rounded, the others bit by bit
    assert (rows < 3) == any("row" in warning for warning in done.warnings)
    for path in ("between", "back"):
        links = read(tmp_path / path).links
        assert links[..., :rows, :].tobytes() == configuration.links[..., :rows, :].tobytes()
        assert np.abs(links - configuration.links).max() < (1e-6 if precision == 32 else 1e-14)
    # From memory the same bytes as on the way from file to file
    write(tmp_path / "again", read(tmp_path / "first"), target, **options)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "between").read_bytes()


def test_unknown_options_are_refused(tmp_path, make_configuration, writable_at):
    format, precision = writable_at
    with pytest.raises(ValueError, match="has no option 'no_such'"):
        write(
            tmp_path / "a", make_configuration(DIMS, precision=precision), format, no_such="value"
        )
    assert list(tmp_path.iterdir()) == []


def test_precision_changes_only_when_asked(tmp_path, make_configuration, writable, equal_precision):
    if equal_precision(writable, all=True) != {32, 64}:
        pytest.skip("the format has one precision only")
    configuration = make_configuration(DIMS)
    write(tmp_path / "double", configuration, writable)
    rounded = convert(tmp_path / "double", tmp_path / "single", writable, precision=32)
    assert (rounded.source_precision, rounded.precision) == (64, 32)
    assert any("rounded from 64 to 32" in warning for warning in rounded.warnings)
    single = read(tmp_path / "single").links
    assert np.array_equal(single, configuration.links.astype(np.complex64))
    widened = convert(tmp_path / "single", tmp_path / "wide", writable, precision=64)
    assert not any("rounded" in warning for warning in widened.warnings)
    assert np.array_equal(read(tmp_path / "wide").links, single)
    kept = convert(tmp_path / "single", tmp_path / "kept", writable)
    assert kept.precision == 32


def test_equal_input_gives_equal_bytes(tmp_path, make_configuration, writable_at):
    format, precision = writable_at
    contents = []
    for name in ("a", "b"):
        field = make_configuration(DIMS, precision=precision, metadata={"SEQUENCE_NUMBER": "3"})
        (tmp_path / name).mkdir()
        write(tmp_path / name / "conf", field, format)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]


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


def test_links_need_not_be_contiguous(tmp_path, make_links, writable_at):
    format, precision = writable_at
    links = make_links(DIMS, precision=precision)
    shuffled = np.ascontiguousarray(links.swapaxes(0, 3)).swapaxes(0, 3)
    assert not shuffled.flags.c_contiguous
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


def test_unknown_precision(tmp_path, make_configuration, writable):
    with pytest.raises(ValueError, match="precision must be 32 or 64"):
        write(tmp_path / "a", make_configuration(), writable, precision=16)


@pytest.mark.parametrize("scale", [1.9, 12.0, 1e8, 1e60])
def test_links_far_outside_the_group_come_back(tmp_path, writable_at, scale):
    """Their plaquettes have more digits than others: headers must not grow into the links."""
    format, precision = writable_at
    if scale > 1e10 and precision == 32:
        pytest.skip("too large for 32 bit")
    unit = np.broadcast_to(np.eye(3), (4, 2, 2, 2, 4, 3, 3))
    links = (scale * unit).astype(np.complex64 if precision == 32 else np.complex128)
    write(tmp_path / "a", Configuration(links), format)
    again = read(tmp_path / "a")
    assert again.links.tobytes() == links.tobytes()
    assert again.checksum is None or again.checksum.ok


def test_links_whose_plaquette_overflows_are_refused(tmp_path, make_configuration, writable):
    configuration = make_configuration(DIMS)
    configuration.links[...] = 1e200 * np.eye(3)
    for precision in (None, 64):
        with pytest.raises((CheckError, FormatError)):
            write(tmp_path / "a", configuration, writable, precision)
    assert list(tmp_path.iterdir()) == []
