"""NERSC files built here byte by byte, and the header that the writer makes."""

import re
import struct

import numpy as np
import pytest
from flowmc_adapters import (
    CheckError,
    Configuration,
    FormatError,
    link_trace,
    plaquettes,
    read,
    read_header,
    write,
)
from flowmc_adapters.nersc.writing import decimal_text


def payload(links, order=">", bits=64, rows=None):
    """Links as bytes, number by number, with no code of the package."""
    code = {32: "f", 64: "d"}[bits]
    lt, lz, ly, lx, _, nc, _ = links.shape
    numbers = []
    for t in range(lt):
        for z in range(lz):
            for y in range(ly):
                for x in range(lx):
                    for mu in range(4):
                        for row in range(rows or nc):
                            for column in range(nc):
                                element = links[t, z, y, x, mu, row, column]
                                numbers += [element.real, element.imag]
    return struct.pack(f"{order}{len(numbers)}{code}", *numbers)


def nersc_bytes(links, data, order=">", **changes):
    """A header in the order of keys of SIMULATeQCD, then the data."""
    keys = {"DATATYPE": "4D_SU3_GAUGE_3x3"}
    keys |= {f"DIMENSION_{i}": extent for i, extent in enumerate(links.shape[3::-1], 1)}
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    keys["CHECKSUM"] = f"{sum(words) % 2**32:x}"
    keys["LINK_TRACE"] = f"{link_trace(links):.10g}"
    keys["PLAQUETTE"] = f"{plaquettes(links).mean:.10g}"
    keys["FLOATING_POINT"] = "IEEE64BIG"
    keys |= changes
    lines = [f"{key} = {value}" for key, value in keys.items() if value is not None]
    return "\n".join(["BEGIN_HEADER", *lines, "END_HEADER", ""]).encode() + data


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("nc", [2, 3, 4])
@pytest.mark.parametrize("compressed", [False, True])
def test_reads_every_variant(tmp_path, make_links, order, bits, nc, compressed):
    links = make_links(nc=nc, precision=bits)
    rows = nc - 1 if compressed else nc
    data = payload(links, order, bits, rows)
    datatype = f"4D_SU{nc}_GAUGE" + ("" if compressed else f"_{nc}x{nc}")
    floating = f"IEEE{bits}{'BIG' if order == '>' else 'LITTLE'}"
    path = tmp_path / "lat"
    path.write_bytes(nersc_bytes(links, data, order, DATATYPE=datatype, FLOATING_POINT=floating))
    configuration = read(path)
    assert configuration.dims == (2, 3, 4, 5)
    assert configuration.links.dtype == links.dtype
    if compressed:
        assert np.array_equal(configuration.links[..., :rows, :], links[..., :rows, :])
        tolerance = 5e-7 if bits == 32 else 1e-14
        assert np.abs(configuration.links - links).max() < tolerance
        assert any("reconstructed" in warning for warning in configuration.warnings)
    else:
        assert configuration.links.tobytes() == links.tobytes()
        assert configuration.warnings == []
    assert configuration.checksum.ok


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("with_checksum", [True, False])
def test_byte_order_left_open_is_found_out(tmp_path, make_links, order, bits, with_checksum):
    links = make_links(precision=bits)
    changes = {"FLOATING_POINT": f"IEEE{bits}"} | ({} if with_checksum else {"CHECKSUM": None})
    path = tmp_path / "lat"
    path.write_bytes(nersc_bytes(links, payload(links, order, bits), order, **changes))
    configuration = read(path)
    assert configuration.links.tobytes() == links.tobytes()
    name = "big" if order == ">" else "little"
    assert any(f"{name}-endian" in warning for warning in configuration.warnings)


def test_missing_floating_point_means_32_bit_big_endian(tmp_path, make_links):
    links = make_links(precision=32)
    path = tmp_path / "lat"
    path.write_bytes(nersc_bytes(links, payload(links, bits=32), FLOATING_POINT=None))
    assert read(path).links.tobytes() == links.tobytes()


def test_header_spellings_of_other_codes(tmp_path, make_links):
    links = make_links()
    text = nersc_bytes(links, payload(links))
    text = text.replace(b"PLAQUETTE = ", b"PLAQUETTE  =  ")  # CPS, Grid
    text = re.sub(rb"CHECKSUM = (\w+)", rb"CHECKSUM =   \1", text)  # Grid pads with blanks
    text = text.replace(b"IEEE64BIG\n", b"IEEE64BIG\nMY_OWN_KEY = a = b\nHDR_VERSION =\n")
    path = tmp_path / "lat"
    path.write_bytes(text)
    configuration = read(path)
    assert configuration.links.tobytes() == links.tobytes()
    assert configuration.metadata["MY_OWN_KEY"] == "a = b"


@pytest.mark.parametrize(
    ("key", "failing"), [("PLAQUETTE", "plaquette"), ("LINK_TRACE", "link_trace")]
)
@pytest.mark.parametrize("error", [2e-5, -2e-5])
def test_wrong_observables_are_errors(tmp_path, make_links, key, failing, error):
    links = make_links()
    value = {"PLAQUETTE": plaquettes(links).mean, "LINK_TRACE": link_trace(links)}[key]
    path = tmp_path / "lat"
    path.write_bytes(nersc_bytes(links, payload(links), **{key: value + error}))
    with pytest.raises(CheckError, match="the header's"):
        read(path)
    assert list(read(path, check_checksum=False).failed_checks) == [failing]
    path.write_bytes(nersc_bytes(links, payload(links), **{key: value + error / 4}))
    assert read(path).failed_checks == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DATATYPE": "SITMO"}, "random-number state"),
        ({"DATATYPE": "4D_SU3_GAUGE_2x2"}, "4D_SU3_GAUGE_2x2"),
        ({"DATATYPE": None, "DIMENSION_1": None, "DIMENSION_2": None}, "DIMENSION"),
        ({"DIMENSION_2": "-3"}, "DIMENSION"),
        ({"DIMENSION_2": "1e9"}, "DIMENSION"),
        ({"DIMENSION_2": "999999999999"}, "announces"),
        ({"DIMENSION_4": None, "DIMENSION_3": None}, "DIMENSION"),
        ({"DIMENSION_4": None, "DIMENSION_3": "7"}, "fits no value"),
        ({"FLOATING_POINT": "VAX"}, "VAX"),
        ({"DATATYPE": "4D_SU999_GAUGE_999x999"}, "announces"),
    ],
)
def test_impossible_headers(tmp_path, make_links, changes, message):
    links = make_links()
    path = tmp_path / "lat"
    path.write_bytes(nersc_bytes(links, payload(links), **changes))
    with pytest.raises(FormatError, match=message):
        read(path)


def test_header_that_never_ends(tmp_path):
    path = tmp_path / "lat"
    path.write_bytes(b"BEGIN_HEADER\n" + b"A = B\n" * 30000)
    with pytest.raises(FormatError, match="END_HEADER"):
        read(path)


def test_written_file_is_what_every_reader_accepts(tmp_path, make_configuration):
    configuration = make_configuration(
        metadata={"SEQUENCE_NUMBER": "400", "ENSEMBLE_LABEL": "b6.0 test", "MILC_INFO": "x" * 300}
    )
    warnings = write(tmp_path / "lat", configuration, "nersc")
    content = (tmp_path / "lat").read_bytes()
    head, data = content.split(b"END_HEADER\n", 1)
    assert data == payload(configuration.links)
    lines = head.decode("ascii").split("\n")
    assert lines[0] == "BEGIN_HEADER"
    pairs = dict(line.split(" = ", 1) for line in lines[1:-1])
    assert len(lines) < 128
    assert all(len(line) < 127 for line in lines)  # QDP++ counts the newline
    assert all(value.strip() != "" for value in pairs.values())
    # Equally long whatever the links are, so that the header can be written last
    widths = {"LINK_TRACE": 18, "PLAQUETTE": 18, "CHECKSUM": 8}
    for key, width in widths.items():
        assert len(pairs[key]) == width
        pairs[key] = pairs[key].lstrip(" ")
    assert all(value.strip() == value for value in pairs.values())
    assert pairs["DATATYPE"] == "4D_SU3_GAUGE_3x3"
    assert pairs["FLOATING_POINT"] == "IEEE64BIG"
    assert [pairs[f"DIMENSION_{i}"] for i in (1, 2, 3, 4)] == ["2", "3", "4", "5"]
    assert pairs["CHECKSUM"] == f"{sum(struct.unpack(f'>{len(data) // 4}I', data)) % 2**32:x}"
    assert pairs["SEQUENCE_NUMBER"] == "400"
    assert pairs["ENSEMBLE_LABEL"] == "b6.0 test"
    assert any("MILC_INFO cut" in warning for warning in warnings)
    for key, value in (
        ("PLAQUETTE", plaquettes(configuration.links).mean),
        ("LINK_TRACE", link_trace(configuration.links)),
    ):
        decimals = pairs[key].split(".")[1]
        assert abs(float(pairs[key]) - value) < 10.0 ** (2 - len(decimals))  # GPT
        assert float(pairs[key]) == pytest.approx(value, rel=1e-9)  # PyQUDA


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1.000000000000"),
        (0.0, "0.000000000000"),
        (0.59854555908312345, "0.598545559083"),
        (-0.00077418463763456, "-0.000774184637635"),
        (1.23456e-9, "0.000000001234560"),
        (1e-20, "0.000000000000000"),
    ],
)
def test_decimals(value, text):
    assert decimal_text(value) == text


def test_nothing_in_metadata_can_forge_a_header(tmp_path, make_configuration):
    configuration = make_configuration(
        metadata={
            "ENSEMBLE_ID": "a\nEND_HEADER\nb",
            "CHECKSUM": "0",
            "PLAQUETTE": "7",
            "CREATOR": "",
            "END_HEADER": "1",
            "X_BEGIN_HEADER": "2",
            "PLACE": "Mainz, Z\u00fcrich",
        }
    )
    warnings = write(tmp_path / "lat", configuration, "nersc")
    found = read(tmp_path / "lat").metadata
    assert found["ENSEMBLE_ID"] == "unknown"
    assert not found.keys() & {"END_HEADER", "X_BEGIN_HEADER"}
    content = (tmp_path / "lat").read_bytes()
    assert content.count(b"END_HEADER") == content.count(b"BEGIN_HEADER") == 1
    for key in ("ENSEMBLE_ID", "END_HEADER", "X_BEGIN_HEADER"):
        assert any(text.startswith(f"{key} left out") for text in warnings)
    assert found["PLACE"] == "Mainz, Z?rich"
    assert any(text.startswith("PLACE has letters outside ASCII") for text in warnings)


def test_blanks_within_a_value_are_kept(tmp_path, make_configuration):
    metadata = {"CREATION_DATE": "Tue Feb  4 16:34:12 2003"}
    write(tmp_path / "lat", make_configuration(metadata=metadata), "nersc")
    assert read(tmp_path / "lat").metadata["CREATION_DATE"] == metadata["CREATION_DATE"]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("order", ["big", "little"])
@pytest.mark.parametrize("rows", ["3", "2"])
def test_rows_and_byte_order_on_request(tmp_path, make_configuration, bits, order, rows):
    configuration = make_configuration(precision=bits)
    path = tmp_path / "lat"
    warnings = write(path, configuration, "nersc", rows=rows, byte_order=order)
    assert any("not read by QDP++ and MILC" in text for text in warnings) == (order == "little")
    assert any("Grid" in text for text in warnings) == (order == "little" and bits == 32)
    head, data = path.read_bytes().split(b"END_HEADER\n", 1)
    sign = {"big": ">", "little": "<"}[order]
    assert data == payload(configuration.links, sign, bits, int(rows))
    assert f"FLOATING_POINT = IEEE{bits}{order.upper()}\n".encode() in head
    suffix = "_3x3" if rows == "3" else ""
    assert f"DATATYPE = 4D_SU3_GAUGE{suffix}\n".encode() in head
    again = read(path)
    assert again.checksum.ok
    tolerance = 0 if rows == "3" else {32: 5e-7, 64: 1e-14}[bits]
    assert np.abs(again.links - configuration.links).max() <= tolerance


@pytest.mark.parametrize("style", ["universal", "simulateqcd"])
def test_rows_that_would_not_come_back_are_not_left_out(tmp_path, make_configuration, style):
    configuration = make_configuration()
    configuration.links[-1, ..., 3, :, :] *= -1  # the fermions' boundary sign
    with pytest.raises(FormatError, match="last row cannot be left out"):
        write(tmp_path / "lat", configuration, "nersc", rows="2", style=style)
    with pytest.raises(FormatError, match=r"SU\(3\)"):
        write(tmp_path / "lat", make_configuration(nc=2), "nersc", rows="2", style=style)
    assert list(tmp_path.iterdir()) == []


def test_open_boundaries_do_without_the_last_row(tmp_path, make_configuration):
    configuration = make_configuration()
    configuration.links[-1, ..., 3, :, :] = 0
    write(tmp_path / "lat", configuration, "nersc", rows="2")
    assert np.abs(read(tmp_path / "lat").links - configuration.links).max() < 1e-14


def test_number_must_be_a_number(tmp_path, make_configuration):
    with pytest.raises(FormatError, match="SEQUENCE_NUMBER"):
        write(tmp_path / "lat", make_configuration(metadata={"SEQUENCE_NUMBER": "12b"}), "nersc")
    assert list(tmp_path.iterdir()) == []


def test_header_alone(tmp_path, make_configuration):
    write(tmp_path / "lat", make_configuration(), "nersc")
    header = read_header(tmp_path / "lat")
    assert header.layout.offset + header.layout.total_bytes == (tmp_path / "lat").stat().st_size
    assert header.checksum.computed is None
    assert header.checksum.ok is None


def test_three_dimensions_do_not_fit(tmp_path, make_links):
    with pytest.raises(FormatError, match="four-dimensional"):
        write(tmp_path / "lat", Configuration(make_links((2, 3, 4))), "nersc")
