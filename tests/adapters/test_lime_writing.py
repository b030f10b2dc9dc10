"""What our LIME files contain, and which texts of others they keep."""

import json

import pytest
from flowmc_adapters import CheckError, link_trace, plaquettes, read, write
from flowmc_adapters.scidac_xml import renewed, updated_xlf
from lime_bytes import checksum_xml, grid_bytes, payload, record, records_of, sums


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
