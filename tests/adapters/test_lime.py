"""LIME files built here byte by byte, with the oddities of real writers, and what ours contain."""

import json
import pickle
import struct
import zlib

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
from flowmc_adapters.lime.text import renewed, updated_xlf


def record(kind, data, flags=0xC0, pad=True, reserved=0):
    numbers = struct.pack(">IHBBQ", 0x456789AB, 1, flags, reserved, len(data))
    head = numbers + kind.encode().ljust(128, b"\0")
    return head + data + (b"\0" * (-len(data) % 8) if pad else b"")


def records_of(content):
    found, offset = [], 0
    while offset < len(content):
        magic, version, flags, reserved, length = struct.unpack_from(">IHBBQ", content, offset)
        assert (magic, version, reserved) == (0x456789AB, 1, 0)
        kind = content[offset + 16 : offset + 144].rstrip(b"\0").decode()
        found.append((kind, flags, content[offset + 144 : offset + 144 + length]))
        offset += 144 + length + (-length % 8)
    assert offset == len(content)
    return found


def payload(links):
    """Big-endian numbers, element by element in C order, with no code of the package."""
    numbers = [part for element in links.ravel() for part in (element.real, element.imag)]
    return struct.pack(f">{len(numbers)}{'f' if links.itemsize == 8 else 'd'}", *numbers)


def sums(data, sites):
    suma = sumb = 0
    size = len(data) // sites
    for rank in range(sites):
        code = zlib.crc32(data[rank * size : (rank + 1) * size])
        for modulus in (29, 31):
            shift = rank % modulus
            word = ((code << shift) | (code >> (32 - shift))) & 0xFFFFFFFF if shift else code
            suma, sumb = (suma ^ word, sumb) if modulus == 29 else (suma, sumb ^ word)
    return suma, sumb


def ildg_xml(bits=64, field="su3gauge", lx=2, ly=3, lz=4, lt=5):
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ildgFormat xmlns="http://www.lqcd.org/ildg">\n'
        f"  <version>1.0</version>\n  <field>{field}</field>\n  <precision>{bits}</precision>\n"
        f"  <lx>{lx}</lx>\n  <ly>{ly}</ly>\n  <lz>{lz}</lz>\n  <lt>{lt}</lt>\n</ildgFormat>"
    ).encode()


def checksum_xml(data, sites=120, form="%x"):
    suma, sumb = sums(data, sites)
    text = f"<suma>{form % suma}</suma><sumb>{form % sumb}</sumb>"
    return f"<scidacChecksum>{text}</scidacChecksum>".encode()


@pytest.fixture
def read_bytes(tmp_path):
    def go(content, **options):
        path = tmp_path / "conf.lime"
        path.write_bytes(content)
        return read(path, **options)

    return go


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


def qio_bytes(links):
    data = payload(links)
    texts = {
        "scidac-private-file-xml": "<scidacFile><dims>2 3 4 5 </dims>"
        "<volfmt>0</volfmt></scidacFile>",
        "scidac-file-xml": "<file/>",
        "scidac-private-record-xml": "<scidacRecord><recordtype>0</recordtype><colors>3</colors>"
        "<typesize>144</typesize><datacount>4</datacount></scidacRecord>",
        "scidac-record-xml": f"<usqcdInfo><plaq>{plaquettes(links).mean}</plaq>"
        f"<linktr>{link_trace(links)}</linktr><info>beta = 6</info></usqcdInfo>",
    }
    return (
        b"".join(record(kind, text.encode() + b"\0") for kind, text in texts.items())
        + record("scidac-binary-data", data)
        + record("scidac-checksum", checksum_xml(data))
    )


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


@pytest.mark.parametrize("format", ["ildg", "scidac"])
@pytest.mark.parametrize("bits", [32, 64])
def test_written_file_is_the_universal_layout(tmp_path, make_configuration, format, bits):
    configuration = make_configuration(
        precision=bits,
        metadata={
            "SEQUENCE_NUMBER": "7",
            "CREATOR": "A & B",
            "CHECKSUM": "stale",
            "xlf-info": "plaquette = 0.500000000000\n trajectory nr = 6\n beta = 6.0\n",
            "scidac-record-xml": "<chroma>kept</chroma>",
        },
    )
    links = configuration.links
    write(tmp_path / "conf", configuration, format)
    found = records_of((tmp_path / "conf").read_bytes())
    kinds = [kind for kind, _, _ in found]
    between = ["ildg-format", "ildg-data-lfn"] if format == "ildg" else []
    assert kinds == [
        "scidac-private-file-xml",
        "scidac-file-xml",
        "scidac-private-record-xml",
        "scidac-record-xml",
        *between,
        f"{format}-binary-data",
        "scidac-checksum",
        "xlf-info",
        "flowmc-metadata",
    ]
    flags = [flags for _, flags, _ in found]
    assert flags == [0x80, 0x40, 0x80, *[0] * (1 + len(between)), 0, 0x40, 0xC0, 0xC0]
    texts = {kind: data for kind, _, data in found}
    data = texts[f"{format}-binary-data"]
    assert data == payload(links)
    suma, sumb = sums(data, 120)
    assert f"<suma>{suma:x}</suma><sumb>{sumb:x}</sumb>".encode() in texts["scidac-checksum"]
    prologue = b'<?xml version="1.0" encoding="UTF-8"?>'
    assert texts["scidac-private-file-xml"] == (
        prologue + b"<scidacFile><version>1.1</version><spacetime>4</spacetime>"
        b"<dims>2 3 4 5 </dims><volfmt>0</volfmt></scidacFile>\0"
    )
    letter, size = (b"F", b"72") if bits == 32 else (b"D", b"144")
    assert texts["scidac-private-record-xml"] == (
        prologue + b"<scidacRecord><version>1.1</version><date>Thu Jan  1 00:00:00 1970 UTC</date>"
        b"<recordtype>0</recordtype><datatype>QDP_" + letter + b"3_ColorMatrix</datatype>"
        b"<precision>" + letter + b"</precision><colors>3</colors><spins>1</spins><typesize>"
        + size + b"</typesize><datacount>4</datacount></scidacRecord>\0"
    )  # fmt: skip
    # Equally long whatever the sign
    assert b"<plaq>% .15f</plaq>" % plaquettes(links).mean in texts["scidac-record-xml"]
    assert b"<linktr>% .15f</linktr>" % link_trace(links) in texts["scidac-record-xml"]
    assert b"<info>SEQUENCE_NUMBER = 7\nCREATOR = A &amp; B</info>" in texts["scidac-record-xml"]
    assert texts["xlf-info"] == (
        b"plaquette = %.12f\n trajectory nr = 7\n beta = 6.0\n" % plaquettes(links).mean
    )
    assert json.loads(texts["flowmc-metadata"]) == {"source-record-xml": "<chroma>kept</chroma>"}
    if format == "ildg":
        assert texts["ildg-format"].endswith(
            b"<version>1.0</version><field>su3gauge</field><precision>%d</precision><lx>2</lx>"
            b"<ly>3</ly><lz>4</lz><lt>5</lt></ildgFormat>\0" % bits
        )
    again = read(tmp_path / "conf")
    assert again.number == 7
    assert again.metadata["CREATOR"] == "A & B"
    assert again.warnings == []


def test_a_chain_of_files_keeps_its_metadata(tmp_path, make_configuration, make_links):
    configuration = make_configuration(
        metadata={
            "SEQUENCE_NUMBER": "1",
            "ENSEMBLE_ID": "e <1>",
            "scidac-file-xml": "<title>mine</title>",
            "scidac-record-xml": "<usqcdInfo><plaq>0.1</plaq><linktr>0</linktr>"
            "<info>kappa = 0.13\n<nested>x</nested></info></usqcdInfo>",
            "ildg-data-lfn": "lfn://x",
            "scidac-date": "Sun & Mon <UTC>",
            "something-else": "\ud800 unencodable",
        }
    )
    for number in range(2, 5):
        format = ("ildg", "scidac")[number % 2]
        configuration.metadata["SEQUENCE_NUMBER"] = str(number)
        configuration.links = make_links(seed=number)
        write(tmp_path / "conf", configuration, format)
        configuration = read(tmp_path / "conf")
        metadata = configuration.metadata
        assert configuration.number == number
        assert metadata["ENSEMBLE_ID"] == "e <1>"
        assert metadata["scidac-file-xml"].endswith("<title>mine</title>")
        assert "kappa = 0.13\n<nested>x</nested>\n" in metadata["scidac-record-xml"]
        assert metadata["scidac-record-xml"].count("SEQUENCE_NUMBER") == 1
        assert metadata["ildg-data-lfn"] == "lfn://x"
        assert metadata["scidac-date"] == "Sun & Mon <UTC>"
        assert metadata["something-else"] == "\ud800 unencodable"


def test_header_alone(tmp_path, make_configuration):
    configuration = make_configuration()
    write(tmp_path / "conf", configuration, "ildg")
    header = read_header(tmp_path / "conf")
    with open(tmp_path / "conf", "rb") as file:
        file.seek(header.layout.offset)
        assert file.read(header.layout.total_bytes) == payload(configuration.links)
    assert header.plaquette == pytest.approx(plaquettes(configuration.links).mean)


@pytest.mark.parametrize("format", ["ildg", "scidac"])
def test_metadata_too_long_for_other_readers_are_cut_into_records(
    tmp_path, make_configuration, format
):
    """SIMULATeQCD takes any record of more than 100,000 bytes for the links."""
    metadata = {
        "story": "".join(f"{i} \u683c\u2029<&\n" for i in range(20_000)),
        "scidac-record-xml": f"<HMC>{'x' * 150_000}</HMC>",
        "short": "\ud800 \U0001f600",
    }
    assert write(tmp_path / "conf", make_configuration(metadata=metadata), format) == []
    content = (tmp_path / "conf").read_bytes()
    long = [kind for kind, _, data in records_of(content) if len(data) > 100_000]
    assert set(long) <= {"ildg-binary-data", "scidac-binary-data"}
    found = read(tmp_path / "conf")
    assert found.warnings == []
    assert found.metadata["story"] == metadata["story"]
    assert found.metadata["short"] == metadata["short"]
    assert metadata["scidac-record-xml"] in found.metadata.values()
    write(tmp_path / "again", found, format)
    assert (tmp_path / "again").read_bytes() == content


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


def grid_bytes(links, with_usqcd=True, **changes):
    """Records, their order, tabs and line breaks as Grid has them."""
    data = payload(links)
    values = {"plaquette": plaquettes(links).mean, "link_trace": link_trace(links)} | changes
    usqcd = (
        '<?xml version="1.0"?>\n<usqcdInfo>\n\t<version>1.0</version>\n'
        f"\t<plaq>{values['plaquette']:.10e}</plaq>\n"
        f"\t<linktr>{values['link_trace']:.10e}</linktr>\n"
        "\t<info>\n\t</info>\n</usqcdInfo>\n"
    )
    user = usqcd if with_usqcd else "<?xml version='1.0'?>\n<empty/>\n"
    meta = (
        '<?xml version="1.0"?>\n<FieldMetaData>\n\t<nd>4</nd>\n'
        f"\t<link_trace>{values['link_trace']:.14e}</link_trace>\n"
        f"\t<plaquette>{values['plaquette']:.14e}</plaquette>\n</FieldMetaData>\n"
    )
    norm = b"<?xml version='1.0'?>\n<FieldNormMetaData>\n\t<norm2>1.44e+03</norm2>\n"
    dims = "<dims>\n\t\t2\n\t\t3\n\t\t4\n\t\t5\n\t</dims>"
    return (
        record("grid-format", meta.encode(), 0x80)
        + record("FieldNormMetaData", norm, 0)
        + record("scidac-private-file-xml", f"<scidacFile>\n\t{dims}\n</scidacFile>".encode(), 0)
        + record("scidac-file-xml", user.encode(), 0x40)
        + record("scidac-record-xml", user.encode(), 0x80)
        + record(
            "scidac-private-record-xml",
            b"<scidacRecord>\n\t<version>1.0</version>\n\t<recordtype>0</recordtype>\n"
            b"\t<datatype>GRID_D_LorentzVector4_ColourMatrix3</datatype>\n"
            b"\t<precision>D</precision>\n\t<colors>3</colors>\n\t<typesize>144</typesize>\n"
            b"\t<datacount>4</datacount>\n</scidacRecord>\n",
            0,
        )
        + record("ildg-format", ildg_xml(), 0)
        + record("ildg-data-lfn", b"lfn://grid/ckpoint", 0)
        + record("ildg-binary-data", data, 0)
        + record("FieldNormMetaData", norm, 0)
        + record("scidac-checksum", checksum_xml(data), 0x40)
    )


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


def test_numbers_of_the_old_links_do_not_survive_in_a_file_of_grid(tmp_path, make_links):
    links, others = make_links(), make_links(seed=2)
    (tmp_path / "grid").write_bytes(grid_bytes(links))
    configuration = read(tmp_path / "grid")
    configuration.links = others
    for style in ("universal", "qio"):
        write(tmp_path / "conf", configuration, "ildg", style=style)
        assert read(tmp_path / "conf").failed_checks == {}
        assert b"%.10e" % plaquettes(links).mean not in (tmp_path / "conf").read_bytes()


PRIVATE_RECORDS = {
    "QDP++ of 2004": "<version>1.0</version><globaldata>0</globaldata><datatype>Lattice</datatype>"
    "<precision>D</precision><colors>3</colors><spins>4</spins><typesize>144</typesize>"
    "<datacount>4</datacount>",
    "older than that": "<version>1.0</version><datatype>Lattice</datatype><precision>D</precision>"
    "<colors>3</colors><typesize>144</typesize><datacount>4</datacount>",
    "QUDA": "<version>1.1</version><recordtype>0</recordtype>"
    "<datatype>QUDA_DNc3_GaugeField</datatype><precision>D</precision><colors>9</colors>"
    "<spins>1</spins><typesize>576</typesize><datacount>1</datacount>",
    "zero means left out": "<version>1.1</version><colors>0</colors><typesize>144</typesize>"
    "<datacount>4</datacount>",
}


@pytest.mark.parametrize("text", PRIVATE_RECORDS.values(), ids=PRIVATE_RECORDS)
@pytest.mark.parametrize("kind", ["ildg-binary-data", "scidac-binary-data"])
def test_private_records_of_all_times(read_bytes, make_links, text, kind):
    links = make_links()
    data = payload(links)
    content = (
        record("scidac-private-file-xml", b"<scidacFile><dims>2 3 4 5 </dims></scidacFile>\0")
        + record("scidac-private-record-xml", f"<scidacRecord>{text}</scidacRecord>\0".encode())
        + record("scidac-record-xml", b"<user/>\0")
        + record(kind, data)
    )
    configuration = read_bytes(content + record("scidac-checksum", checksum_xml(data)))
    assert configuration.links.tobytes() == links.tobytes()
    with pytest.raises(CheckError, match="no checksum record"):  # QIO always writes one
        read_bytes(content)


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


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("0.571077", 0.5710771117, "0.571077"),
        ("0.571077", 0.5710779, "0.571077900000"),
        ("6.350056e-01", 0.635005572229, "6.350056e-01"),
        ("6.350056e-01", 0.6350062, "0.635006200000"),
        ("1.000000000000", 1.0, "1.000000000000"),
        ("1", 0.9, "0.900000000000"),
        ("0.6", 0.61, "0.610000000000"),
        ("877.17", 0.57, "0.570000000000"),
        ("nan", 0.57, "0.570000000000"),
        ("", 0.57, "0.570000000000"),
        ("1e999", 0.57, "0.570000000000"),
    ],
)
def test_printed_numbers_stay_if_they_are_right(text, value, expected):
    assert renewed(text, value, ".12f") == expected
    assert updated_xlf(f"\n plaquette = {text}\n beta = 6", value, None) == (
        f"\n plaquette = {expected}\n beta = 6"
    )


@pytest.mark.parametrize(
    ("text", "number", "expected"),
    [
        ("a = 1\n trajectory nr = 12\n b = 2", "13", "a = 1\n trajectory nr = 13\n b = 2"),
        (
            " trajectory nr = \n trajectory nr = 9\n",
            "13",
            " trajectory nr = \n trajectory nr = 13\n",
        ),
        (" trajectory nr = 12 \n", "12", " trajectory nr = 12 \n"),
        ("a = 1", "13", "a = 1\n trajectory nr = 13\n"),
        ("", "13", " trajectory nr = 13\n"),
        ("a = 1\n", " ", "a = 1\n"),
        ("a = 1\n", None, "a = 1\n"),
    ],
)
def test_trajectory_numbers_are_brought_up_to_date(text, number, expected):
    assert updated_xlf(text, 0.5, number) == expected
