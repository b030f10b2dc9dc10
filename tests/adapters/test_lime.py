"""LIME files built byte by byte, with the oddities of real writers."""

import pickle
import struct

import pytest
from flowmc_adapters import (
    CheckError,
    FormatError,
    link_trace,
    plaquettes,
    read,
    read_header,
    write,
)
from lime_bytes import checksum_xml, grid_bytes, ildg_xml, payload, qio_bytes, record


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("nc", [2, 3, 4])
def test_reads_what_the_standard_says(read_bytes, make_links, nc, bits):
    links = make_links(nc=nc, precision=bits)
    data = payload(links)
    configuration = read_bytes(
        record("ildg-format", ildg_xml(bits, f"su{nc}gauge"), 0x80)
        + record("ildg-binary-data", data, 0)
        + record("scidac-checksum", checksum_xml(data), 0x40)
    )
    assert configuration.links.tobytes() == links.tobytes()
    assert (configuration.format, configuration.dims) == ("ildg", (2, 3, 4, 5))
    assert configuration.checksum.ok
    assert configuration.warnings == []


QUIRKS = {
    "newline before the prologue": lambda r: r | {"format": b"\n" + r["format"]},
    "blanks in tags": lambda r: (
        r | {"format": r["format"].replace(b">", b"> ").replace(b"</", b" </")}
    ),
    "trailing NULs": lambda r: r | {"format": r["format"] + b"\0\0\0", "sum": r["sum"] + b"\0"},
    "unterminated quote": lambda r: r | {"format": r["format"].replace(b'ildg">', b"ildg>")},
    "no field": lambda r: r | {"format": r["format"].replace(b"<field>su3gauge</field>", b"")},
    "suNgauge": lambda r: r | {"format": r["format"].replace(b"su3", b"suN")},
    "Latin-1": lambda r: r | {"format": r["format"] + b"\xe9"},
}


@pytest.mark.parametrize("quirk", QUIRKS)
@pytest.mark.parametrize("form", ["%x", "%08x", "%8x", "%#010x", "0x%x", "%10x ", "%X"])
def test_text_quirks_of_real_writers(read_bytes, make_links, quirk, form):
    links = make_links()
    data = payload(links)
    parts = QUIRKS[quirk]({"format": ildg_xml(), "sum": checksum_xml(data, form=form)})
    configuration = read_bytes(
        record("xlf-info", b"plaquette = 877.17\n trajectory nr = \n trajectory nr = 12\n")
        + record("ildg-format", parts["format"])
        + record("ildg-binary-data", data)
        + record("scidac-checksum", parts["sum"])
    )
    assert configuration.links.tobytes() == links.tobytes()
    assert configuration.checksum.ok
    assert configuration.number == 12
    assert any("xlf-info says plaquette 877.17" in text for text in configuration.warnings)


@pytest.mark.parametrize("flags", [0x00, 0x40, 0x80, 0xC0, 0xFF])
def test_message_flags_order_and_unknown_records_do_not_matter(read_bytes, make_links, flags):
    links = make_links()
    data = payload(links)
    configuration = read_bytes(
        record("ildg-binary-data", data, flags)
        + record("lyncs-io-info", b"\x80\x04cos\nsystem\n", flags)
        + record("ildg-data-lfn", b"lfn://a/b", flags)
        + record("ildg-format", ildg_xml(), flags)
        + record("scidac-checksum", checksum_xml(data), flags)
    )
    assert configuration.links.tobytes() == links.tobytes()
    assert configuration.metadata == {"ildg-data-lfn": "lfn://a/b"}


def test_missing_padding_and_a_stray_newline_are_tolerated(read_bytes, make_links):
    links = make_links()
    data = payload(links)
    content = record("ildg-format", ildg_xml()) + record("ildg-binary-data", data)
    unpadded = content + record("scidac-checksum", checksum_xml(data) + b" " * 3, pad=False)
    assert len(unpadded) % 8
    assert any("lacks its padding" in text for text in read_bytes(unpadded).warnings)
    stray = content + record("scidac-checksum", checksum_xml(data)) + b"\n"
    assert any("stray" in text for text in read_bytes(stray).warnings)


def test_extents_are_given_by_the_caller_where_the_file_has_none(read_bytes, make_links):
    links = make_links(nc=2)
    content = record("ildg-binary-data", payload(links))
    with pytest.raises(FormatError, match="dims"):
        read_bytes(content)
    assert read_bytes(content, dims=(2, 3, 4, 5)).links.tobytes() == links.tobytes()
    with pytest.raises(FormatError, match="do not make a gauge field"):
        read_bytes(content, dims=(2, 3, 4, 7))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 32}, "32 bit"),
        ({"field": "su2gauge"}, "su2gauge"),
        ({"lx": 3}, "do not make a gauge field"),
        ({"lx": 0}, "extents"),
        ({"lx": "two"}, "extents"),
        ({"lx": 10**30}, "extents"),
        ({"lx": 10**15}, "do not make a gauge field"),
    ],
)
def test_contradictions_between_text_and_size(read_bytes, make_links, changes, message):
    data = payload(make_links())
    with pytest.raises(FormatError, match=message):
        read_bytes(record("ildg-format", ildg_xml(**changes)) + record("ildg-binary-data", data))


def test_scidac_without_ildg_records(read_bytes, make_links):
    links = make_links()
    configuration = read_bytes(qio_bytes(links))
    assert configuration.format == "scidac"
    assert configuration.links.tobytes() == links.tobytes()
    assert configuration.stored_plaquette == plaquettes(links).mean


@pytest.mark.parametrize(
    ("kind", "old", "new", "error", "message"),
    [
        ("scidac-record-xml", "<plaq>", "<plaq>1", CheckError, "plaquette"),
        ("scidac-record-xml", "<linktr>", "<linktr>3", CheckError, "link trace"),
        ("scidac-private-file-xml", "<volfmt>0", "<volfmt>2", FormatError, "multi-file"),
        ("scidac-private-file-xml", "2 3 4 5", "2 3 4", FormatError, "extents"),
        ("scidac-private-record-xml", "<recordtype>0", "<recordtype>1", FormatError, "recordtype"),
        ("scidac-private-record-xml", "<datacount>4", "<datacount>1", FormatError, "per site"),
        ("scidac-private-record-xml", "<colors>3", "<colors>2", FormatError, "N = 2"),
    ],
)
def test_scidac_records_are_believed_and_checked(
    tmp_path, make_links, kind, old, new, error, message
):
    content = qio_bytes(make_links())
    assert content.count(old.encode()) == 1
    start = content.index(old.encode())
    length_at = content.rindex(struct.pack(">I", 0x456789AB), 0, start) + 8
    (length,) = struct.unpack_from(">Q", content, length_at)
    body = content[length_at + 136 : length_at + 136 + length].replace(old.encode(), new.encode())
    end = length_at + 136 + length + (-length % 8)
    changed = content[: length_at - 8] + record(kind, body) + content[end:]
    path = tmp_path / "conf.lime"
    path.write_bytes(changed)
    with pytest.raises(error, match=message):
        read(path)


def test_disagreeing_extents(read_bytes, make_links):
    data = payload(make_links())
    text = b"<scidacFile><dims>3 2 4 5 </dims></scidacFile>"
    with pytest.raises(FormatError, match="contradictory"):
        read_bytes(
            record("scidac-private-file-xml", text)
            + record("ildg-format", ildg_xml())
            + record("ildg-binary-data", data)
        )


def test_each_payload_goes_with_its_own_records(read_bytes, make_links):
    links = make_links()
    other = make_links(seed=9)[:, :, :, :, 0]
    data, extra = payload(links), payload(other)
    configuration = read_bytes(
        record("scidac-private-file-xml", b"<scidacFile><dims>2 3 4 5</dims></scidacFile>")
        + record("scidac-record-xml", b"<first/>")
        + record("scidac-binary-data", extra)
        + record("scidac-checksum", checksum_xml(extra))
        + record("scidac-record-xml", b"<second/>")
        + record("scidac-binary-data", data)
        + record("scidac-checksum", checksum_xml(data))
    )
    assert configuration.links.tobytes() == links.tobytes()
    assert configuration.metadata["scidac-record-xml"] == "<second/>"
    assert configuration.checksum.ok


def test_header_alone(tmp_path, make_configuration):
    configuration = make_configuration()
    write(tmp_path / "conf", configuration, "ildg")
    header = read_header(tmp_path / "conf")
    with open(tmp_path / "conf", "rb") as file:
        file.seek(header.layout.offset)
        assert file.read(header.layout.total_bytes) == payload(configuration.links)
    assert header.plaquette == pytest.approx(plaquettes(configuration.links).mean)


def test_flag_words_of_gpt(read_bytes, make_links):
    links = make_links()
    data = payload(links)
    parts = {"ildg-format": ildg_xml(), "ildg-binary-data": data}
    parts["scidac-checksum"] = checksum_xml(data)
    content = b"".join(record(*part, flags=0xFF, reserved=0xFF) for part in parts.items())
    configuration = read_bytes(content)
    assert configuration.links.tobytes() == links.tobytes()
    assert configuration.checksum.ok


class _Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickles_and_random_number_states_are_passed_over(tmp_path, read_bytes, make_links):
    links = make_links()
    data = payload(links)
    pickled = pickle.dumps(_Trap(tmp_path / "trace"))
    configuration = read_bytes(
        record("lyncs-io-info", pickled)
        + record("ranluxd-state", struct.pack(">105I", *range(105)), 0xC0)
        + record("foreign-file-private-xml", b"<dims>9 9 9 9</dims>")
        + record("ildg-format", ildg_xml())
        + record("ildg-binary-data", data)
        + record("scidac-checksum", checksum_xml(data))
        + record("lyncs-io-info", pickled)
    )
    assert configuration.links.tobytes() == links.tobytes()
    assert configuration.metadata == {}
    assert configuration.warnings == []
    assert not (tmp_path / "trace").exists()
    pickle.loads(pickled)  # the trap does work
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("with_usqcd", [True, False])
def test_files_of_grid(tmp_path, read_bytes, make_links, with_usqcd):
    links = make_links()
    configuration = read_bytes(grid_bytes(links, with_usqcd))
    assert configuration.links.tobytes() == links.tobytes()
    assert configuration.checksum.ok
    assert configuration.warnings == []
    assert read_header(tmp_path / "conf.lime").writer == "Grid"
    for name, error in (("plaquette", 2e-5), ("link_trace", -2e-5)):
        value = {"plaquette": plaquettes(links).mean, "link_trace": link_trace(links)}[name]
        with pytest.raises(CheckError, match=name.replace("_", " ")):
            read_bytes(grid_bytes(links, with_usqcd, **{name: value + error}))
        assert read_bytes(grid_bytes(links, with_usqcd, **{name: value + error / 4})).checksum.ok


@pytest.mark.parametrize("tag", ["recordtype", "globaldata"])
def test_global_records_are_no_fields(read_bytes, make_links, tag):
    data = payload(make_links())
    with pytest.raises(FormatError, match=f"{tag} is not 0"):
        read_bytes(
            record("scidac-private-file-xml", b"<dims>2 3 4 5</dims>")
            + record("scidac-private-record-xml", f"<{tag}>1</{tag}>".encode())
            + record("scidac-binary-data", data)
        )


@pytest.mark.parametrize("kind", ["ildg-binary-data", "scidac-binary-data"])
@pytest.mark.parametrize("datatype", ["QDP_D3_DiracPropagator", "QDP_D_ComplexMatrix", "x\x1b[2J"])
def test_other_fields_of_the_same_size_are_no_links(read_bytes, make_links, kind, datatype):
    """A propagator in double precision has as many bytes at a site as four links of SU(6)."""
    data = payload(make_links(nc=6))
    private = f"<scidacRecord><datatype>{datatype}</datatype><colors>6</colors></scidacRecord>"
    with pytest.raises(FormatError, match="not colour matrices") as caught:
        read_bytes(
            record("scidac-private-file-xml", b"<dims>2 3 4 5</dims>")
            + record("scidac-private-record-xml", private.encode())
            + record(kind, data)
            + record("scidac-checksum", checksum_xml(data))
        )
    assert "\x1b" not in str(caught.value)


def test_records_may_come_in_any_order(read_bytes, make_links):
    links = make_links()
    data = payload(links)
    parts = [
        record("scidac-record-xml", b"<mine/>"),
        record("scidac-private-record-xml", b"<recordtype>0</recordtype>"),
        record("scidac-checksum", checksum_xml(data)),
        record("ildg-format", ildg_xml()),
        record("ildg-data-lfn", b"mc://ldg/a"),
    ]
    for turn in range(len(parts)):
        turned = parts[turn:] + parts[:turn]
        for place in range(len(parts) + 1):
            content = [*turned[:place], record("ildg-binary-data", data), *turned[place:]]
            configuration = read_bytes(b"".join(content))
            assert configuration.links.tobytes() == links.tobytes()
            assert configuration.checksum.ok
            assert configuration.metadata["scidac-record-xml"] == "<mine/>"
            assert configuration.metadata["ildg-data-lfn"] == "mc://ldg/a"
