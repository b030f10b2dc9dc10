"""Files of other codes, read and written again in their style: the same bytes.

The expected files are put together here from texts as those codes print them; at the end there are
files that the codes themselves have written, skipped where they are not beside the project.
"""

import struct
import zlib

import numpy as np
import pytest
from flowmc_adapters import FormatError, convert, link_trace, plaquettes, read, write

DIMS = (4, 2, 6, 8)
EXTENTS = "".join(f"DIMENSION_{i} = {extent}\n" for i, extent in enumerate(DIMS, 1))
PERIODIC = "".join(f"BOUNDARY_{i} = PERIODIC\n" for i in (1, 2, 3, 4))
PROLOGUE = '<?xml version="1.0" encoding="UTF-8"?>'
XSI = "http://www.w3.org/2001/XMLSchema-instance"


def numbers(links, order, bits, rows=3):
    """The bytes of the links, number by number."""
    flat = [
        part
        for matrix in links.reshape(-1, 3, 3)
        for row in matrix[:rows]
        for element in row
        for part in (element.real, element.imag)
    ]
    return struct.pack(f"{order}{len(flat)}{'f' if bits == 32 else 'd'}", *flat)


def word_sum(data, order):
    return sum(struct.unpack(f"{order}{len(data) // 4}I", data)) % 2**32


def nersc_file(style, links, order, bits, rows):
    data = numbers(links, order, bits, rows)
    checksum = word_sum(data, order)
    plaquette, trace = plaquettes(links).mean, link_trace(links)
    datatype = "4D_SU3_GAUGE_3x3" if rows == 3 else "4D_SU3_GAUGE"
    floating = f"IEEE{bits}{'BIG' if order == '>' else 'LITTLE'}"
    ensemble = (
        "ENSEMBLE_ID = b6.0_run1\nENSEMBLE_LABEL = test  of blanks\nSEQUENCE_NUMBER = 400\n"
        "CREATOR = somebody\nCREATOR_HARDWARE = (Tue Feb  4) x=y\n"
        "CREATION_DATE = Mon Mar 27 13:58:25 2006\nARCHIVE_DATE = Mon Mar 27 13:58:25 2006\n"
    )
    head = {
        "simulateqcd": f"DATATYPE = {datatype}\n{EXTENTS}CHECKSUM = {checksum:x}\n"
        f"LINK_TRACE = {trace:.10g}\nPLAQUETTE = {plaquette:.10g}\nFLOATING_POINT = {floating}\n",
        "qdp++": f"CHECKSUM = {checksum:x}\nLINK_TRACE = {trace:.6g}\nPLAQUETTE = {plaquette:.6g}\n"
        f"DATATYPE = {datatype}\nHDR_VERSION = 1.0\nSTORAGE_FORMAT = 1.0\n{EXTENTS}{PERIODIC}"
        f"{ensemble}FLOATING_POINT = {floating}\n",
        "cps": f"HDR_VERSION = 1.0\nDATATYPE = {datatype}\nSTORAGE_FORMAT = 1.0\n{EXTENTS}"
        f"LINK_TRACE = {trace:.10g}\nPLAQUETTE  = {plaquette:.10g}\n{PERIODIC}"
        f"CHECKSUM = {checksum:8x}\n{ensemble}FLOATING_POINT = {floating}\n",
    }[style]
    return f"BEGIN_HEADER\n{head}END_HEADER\n".encode() + data


def links_with_a_short_checksum(make_links, order, bits, rows):
    """Links whose NERSC checksum begins with a zero, which the styles print differently."""
    for seed in range(200):
        links = make_links(DIMS, precision=bits, seed=seed)
        stored = np.ascontiguousarray(links[..., :rows, :])
        words = stored.view(links.real.dtype).astype(f"{order}f{bits // 8}").view(f"{order}u4")
        if int(words.sum(dtype=np.uint64)) % 2**32 < 2**28:
            return links
    raise AssertionError("none found")


NERSC = [
    ("simulateqcd", ">", 64, 3),
    ("simulateqcd", ">", 32, 3),
    ("simulateqcd", ">", 64, 2),
    ("qdp++", ">", 32, 2),
    ("cps", "<", 64, 2),
    ("cps", ">", 64, 3),
    ("cps", "<", 32, 3),
]


@pytest.mark.parametrize(("style", "order", "bits", "rows"), NERSC)
def test_nersc_styles(tmp_path, make_links, style, order, bits, rows):
    links = links_with_a_short_checksum(make_links, order, bits, rows)
    content = nersc_file(style, links, order, bits, rows)
    (tmp_path / "lat").write_bytes(content)
    options = {
        "style": style,
        "rows": str(rows),
        "byte_order": {">": "big", "<": "little"}[order],
    }
    conversion = convert(tmp_path / "lat", tmp_path / "again", "nersc", options=options)
    assert (tmp_path / "again").read_bytes() == content
    assert not any("no place" in text for text in conversion.warnings)
    again = read(tmp_path / "again")
    warnings = write(tmp_path / "memory", again, "nersc", **options)
    assert ["last row" in text for text in warnings] == [True] * (rows == 2)
    assert (tmp_path / "memory").read_bytes() == content


@pytest.mark.parametrize(
    ("options", "precision", "message"),
    [
        ({"style": "qdp++"}, 32, "rows 3: ask for rows=2"),
        ({"style": "qdp++", "rows": "2"}, 64, "precision 64: ask for precision=32"),
        ({"style": "qdp++", "rows": "2", "byte_order": "little"}, 32, "ask for byte_order=big"),
        ({"style": "simulateqcd", "byte_order": "little"}, 64, "ask for byte_order=big"),
    ],
)
def test_what_a_code_does_not_write(tmp_path, make_configuration, options, precision, message):
    with pytest.raises(FormatError, match=message):
        write(tmp_path / "lat", make_configuration(DIMS), "nersc", precision, **options)
    with pytest.raises(FormatError, match=r"SU\(2\)"):
        write(tmp_path / "lat", make_configuration(DIMS, nc=2), "nersc", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_a_style_has_no_place_for_is_told(tmp_path, make_configuration):
    metadata = {"SEQUENCE_NUMBER": "3", "CHECKSUM": "0", "xlf-info": "x", "MY_KEY": "y"}
    configuration = make_configuration(DIMS, metadata=metadata)
    (warning,) = write(tmp_path / "lat", configuration, "nersc", style="simulateqcd")
    assert warning.endswith("no place for: MY_KEY, SEQUENCE_NUMBER, xlf-info")
    (warning,) = write(tmp_path / "lat", configuration, "nersc", style="cps")
    assert warning.endswith("no place for: MY_KEY, xlf-info")
    (warning,) = write(tmp_path / "lat", configuration, "ildg", style="tmlqcd")
    assert warning.endswith("no place for: MY_KEY")
    (warning,) = write(tmp_path / "lat", configuration, "ildg", style="qio")
    assert warning.endswith("no place for: xlf-info")
    (warning,) = write(tmp_path / "lat", configuration, "ildg", style="simulateqcd")
    assert warning.endswith("no place for: MY_KEY, SEQUENCE_NUMBER, xlf-info")


def lime_record(kind, data, flags):
    head = struct.pack(">IHBBQ", 0x456789AB, 1, flags, 0, len(data))
    return head + kind.encode().ljust(128, b"\0") + data + b"\0" * (-len(data) % 8)


def scidac_sums(data):
    """suma and sumb, site by site."""
    volume, sums = 4 * 2 * 6 * 8, [0, 0]
    size = len(data) // volume
    for rank in range(volume):
        code = zlib.crc32(data[rank * size : (rank + 1) * size])
        for i, modulus in enumerate((29, 31)):
            bits = f"{code:032b}"
            shift = rank % modulus
            sums[i] ^= int(bits[shift:] + bits[:shift], 2)
    return sums


def links_with_short_sums(make_links, bits):
    """Links one of whose SciDAC checksums begins with a zero, which only tmLQCD prints."""
    for seed in range(200):
        links = make_links(DIMS, precision=bits, seed=seed)
        if min(scidac_sums(numbers(links, ">", bits))) < 2**28:
            return links
    raise AssertionError("none found")


def tmlqcd_file(links, bits, plaquette=None, number=12):
    data = numbers(links, ">", bits)
    suma, sumb = scidac_sums(data)
    plaquette = plaquettes(links).mean if plaquette is None else plaquette
    xlf = (
        f"plaquette = {plaquette:14.12f}\n trajectory nr = {number}\n beta = 6.100000000000, "
        "kappa = 0.125000000000, mu = 0.000000000000, c2_rec = 0.000000\n time = 1597916989\n"
        " hmcversion = 5.2.0\n mubar = 0.000000000000\n epsilonbar = 0.000000000000\n"
        " date = Thu Aug 20 12:49:49 2020\n"
    )
    form = (
        f'{PROLOGUE}\n<ildgFormat xmlns="http://www.lqcd.org/ildg"\n            xmlns:xsi="{XSI}"\n'
        '            xsi:schemaLocation="http://www.lqcd.org/ildg/filefmt.xsd">\n'
        "  <version>1.0</version>\n  <field>su3gauge</field>\n"
        f"  <precision>{bits}</precision>\n  <lx>4</lx>\n  <ly>2</ly>\n  <lz>6</lz>\n"
        "  <lt>8</lt>\n</ildgFormat>"
    )
    checksum = (
        f"{PROLOGUE}\n<scidacChecksum>\n  <version>1.0</version>\n  <suma>{suma:08x}</suma>\n"
        f"  <sumb>{sumb:08x}</sumb>\n</scidacChecksum>"
    )
    return (
        lime_record("xlf-info", xlf.encode(), 0xC0)
        + lime_record("ildg-format", form.encode(), 0x80)
        + lime_record("ildg-binary-data", data, 0)
        + lime_record("scidac-checksum", checksum.encode(), 0x40)
    )


def simulateqcd_file(links, bits, name="mc://ldg/a/b/c/ildg0001"):
    data = numbers(links, ">", bits)
    suma, sumb = scidac_sums(data)
    form = (
        f'\n{PROLOGUE}\n<ildgFormat xmlns="http://www.lqcd.org/ildg"\n            xmlns:xsi="{XSI}"'
        '\n            xsi:schemaLocation="http://www.lqcd.org/ildg/filefmt.xsd">\n'
        "  <version>1.0</version>\n  <field>su3gauge</field>\n"
        f"  <precision>{bits}</precision>\n  <lx>4</lx>  <ly>2</ly>  <lz>6</lz>  <lt>8</lt>\n"
        "</ildgFormat>\n"
    )
    checksum = (
        f"\n{PROLOGUE}\n<scidacChecksum><version>1.0</version><suma>{suma:x}</suma>"
        f"<sumb>{sumb:x}</sumb></scidacChecksum>"
    )
    return (
        lime_record("ildg-format", form.encode(), 0xC0)
        + lime_record("ildg-binary-data", data, 0xC0)
        + lime_record("ildg-data-lfn", name.encode(), 0xC0)
        + lime_record("scidac-checksum", checksum.encode(), 0xC0)
    )


MILC_INFO = f"{PROLOGUE}<info>gauge.beta11 = 7.000000\nquark.flavors1 = 4\n</info>"
CHROMA_XML = '<?xml version="1.0"?>\n\n<weak_field>\n</weak_field>\n\n\n'


def qio_file(links, bits, *, ildg=True, old=False, spins="", name=None, user=MILC_INFO):
    data = numbers(links, ">", bits)
    suma, sumb = scidac_sums(data)
    letter, size = {32: ("F", 72), 64: ("D", 144)}[bits]
    version, marker = ("1.0", "globaldata") if old else ("1.1", "recordtype")
    private = (
        f"{PROLOGUE}<scidacRecord><version>{version}</version><date>Sun Dec  4 20:49:06 2005 UTC"
        f"</date><{marker}>0</{marker}><datatype>QDP_{letter}3_ColorMatrix</datatype>"
        f"<precision>{letter}</precision><colors>3</colors>{spins}<typesize>{size}</typesize>"
        "<datacount>4</datacount></scidacRecord>"
    )
    form = (
        f'{PROLOGUE}<ildgFormat xmlns="http://www.lqcd.org/ildg" xmlns:xsi="{XSI}" '
        'xsi:schemaLocation="http://www.lqcd.org/ildg/filefmt.xsd"><version>1.0</version>'
        f"<field>su3gauge</field><precision>{bits}</precision><lx>4</lx><ly>2</ly><lz>6</lz>"
        "<lt>8</lt></ildgFormat>"
    )
    texts = [
        ("scidac-private-file-xml", f"{PROLOGUE}<scidacFile><version>1.1</version><spacetime>4"
         "</spacetime><dims>4 2 6 8 </dims><volfmt>0</volfmt></scidacFile>", 0x80),
        ("scidac-file-xml", f"{PROLOGUE}<title>MILC archive</title>", 0x40),
        ("scidac-private-record-xml", private, 0x80),
        ("scidac-record-xml", user, 0),
    ]  # fmt: skip
    texts += [("ildg-format", form, 0)] if ildg else []
    texts += [("ildg-data-lfn", name, 0)] if name else []
    checksum = (
        f"{PROLOGUE}<scidacChecksum><version>1.0</version><suma>{suma:x}</suma>"
        f"<sumb>{sumb:x}</sumb></scidacChecksum>\0"
    )
    return (
        b"".join(lime_record(kind, text.encode() + b"\0", flags) for kind, text, flags in texts)
        + lime_record("ildg-binary-data" if ildg else "scidac-binary-data", data, 0)
        + lime_record("scidac-checksum", checksum.encode(), 0x40)
    )


def usqcd(links, extra=""):
    return (
        f'<?xml version="1.0"?>\n<usqcdInfo><version>1.0</version><plaq>{plaquettes(links).mean:e}'
        f"</plaq><linktr>{link_trace(links):.9g}</linktr><info>beta = 6\n{extra}</info></usqcdInfo>"
    )


QIO_VARIANTS = {
    "Chroma": {"spins": "<spins>1</spins>", "user": CHROMA_XML},
    "older Chroma": {"old": True, "spins": "<spins>4</spins>", "user": CHROMA_XML},
    "MILC": {"old": True, "name": "lfn://USQCD/MILC/x"},
    "MILC now": {"name": "lfn://USQCD/MILC/x"},
    "without ILDG": {"ildg": False},
    "usqcdInfo": {"user": usqcd},
    "usqcdInfo with keys": {"user": lambda links: usqcd(links, "SEQUENCE_NUMBER = 7")},
}


@pytest.mark.parametrize("variant", QIO_VARIANTS.values(), ids=QIO_VARIANTS)
@pytest.mark.parametrize("bits", [32, 64])
def test_qio_style(tmp_path, make_links, variant, bits):
    links = links_with_short_sums(make_links, bits)
    user = variant.get("user", MILC_INFO)
    content = qio_file(links, bits, **variant | {"user": user(links) if callable(user) else user})
    format = "ildg" if variant.get("ildg", True) else "scidac"
    again_and_again(tmp_path, content, format, "qio")


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("style", ["tmlqcd", "simulateqcd"])
def test_other_ildg_styles(tmp_path, make_links, style, bits):
    links = links_with_short_sums(make_links, bits)
    make = {"tmlqcd": tmlqcd_file, "simulateqcd": simulateqcd_file}[style]
    again_and_again(tmp_path, make(links, bits), "ildg", style)


def again_and_again(tmp_path, content, format, style):
    (tmp_path / "conf").write_bytes(content)
    conversion = convert(tmp_path / "conf", tmp_path / "again", format, options={"style": style})
    assert (tmp_path / "again").read_bytes() == content
    assert conversion.warnings == []
    configuration = read(tmp_path / "conf")
    assert write(tmp_path / "memory", configuration, format, style=style) == []
    assert (tmp_path / "memory").read_bytes() == content


def test_tmlqcd_numbers_follow_the_links(tmp_path, make_links):
    old, new = make_links(DIMS), make_links(DIMS, seed=2)
    (tmp_path / "conf").write_bytes(tmlqcd_file(old, 64))
    configuration = read(tmp_path / "conf")
    configuration.links = new
    configuration.metadata["SEQUENCE_NUMBER"] = "13"
    write(tmp_path / "conf", configuration, "ildg", style="tmlqcd")
    assert (tmp_path / "conf").read_bytes() == tmlqcd_file(new, 64, number=13)
    # a number that was stale before is put right
    (tmp_path / "conf").write_bytes(tmlqcd_file(new, 64, plaquette=877.17))
    convert(tmp_path / "conf", tmp_path / "conf", "ildg", options={"style": "tmlqcd"})
    assert (tmp_path / "conf").read_bytes() == tmlqcd_file(new, 64)


def test_qio_numbers_follow_the_links(tmp_path, make_links):
    old, new = make_links(DIMS), make_links(DIMS, seed=2)
    user = usqcd(old, "SEQUENCE_NUMBER = 7")
    (tmp_path / "conf").write_bytes(qio_file(old, 64, spins="<spins>1</spins>", user=user))
    configuration = read(tmp_path / "conf")
    configuration.links = new
    configuration.metadata["SEQUENCE_NUMBER"] = "8"
    assert write(tmp_path / "conf", configuration, "ildg", style="qio") == []
    again = read(tmp_path / "conf")
    assert again.number == 8
    assert again.stored_plaquette == pytest.approx(plaquettes(new).mean, abs=1e-14)
    assert again.stored_link_trace == pytest.approx(link_trace(new), abs=1e-14)
    expected = (
        f'<?xml version="1.0"?>\n<usqcdInfo><version>1.0</version><plaq>'
        f"{plaquettes(new).mean:.15g}</plaq><linktr>{link_trace(new):.15g}</linktr>"
        "<info>beta = 6\nSEQUENCE_NUMBER = 8</info></usqcdInfo>"
    )
    assert again.metadata["scidac-record-xml"] == expected


@pytest.mark.parametrize("format", ["ildg", "scidac"])
def test_qio_version_and_precision_of_a_rounded_file(tmp_path, make_links, format):
    links = make_links(DIMS)
    variant = {"old": True, "ildg": format == "ildg"}
    (tmp_path / "conf").write_bytes(qio_file(links, 64, **variant))
    options = {"style": "qio"}
    convert(tmp_path / "conf", tmp_path / "single", format, precision=32, options=options)
    rounded = links.astype(np.complex64)
    assert (tmp_path / "single").read_bytes() == qio_file(rounded, 32, **variant)


def test_qio_names_of_datatypes(tmp_path, make_links):
    content = qio_file(make_links(DIMS), 64, spins="<spins>1</spins>", ildg=False)
    for name in (b"USQCD_D3_ColorMatrix", b"QUDA_DNc3_GaugeField", b"Lattice"):
        changed = renamed(content, name)
        (tmp_path / "conf").write_bytes(changed)
        convert(tmp_path / "conf", tmp_path / "again", "scidac", options={"style": "qio"})
        assert (tmp_path / "again").read_bytes() == changed


def test_qio_names_follow_the_group(tmp_path, make_links):
    (tmp_path / "conf").write_bytes(renamed(qio_file(make_links(DIMS), 64, ildg=False), b"Lattice"))
    configuration = read(tmp_path / "conf")
    configuration.links = make_links(DIMS, nc=2)
    write(tmp_path / "conf", configuration, "scidac", style="qio")
    assert b"<datatype>QDP_D2_ColorMatrix</datatype>" in (tmp_path / "conf").read_bytes()


def renamed(content, name):
    """Another datatype in the private record, whose length follows."""
    start = content.index(b"scidac-private-record-xml") - 16
    (length,) = struct.unpack_from(">Q", content, start + 8)
    body = content[start + 144 : start + 144 + length].replace(b"QDP_D3_ColorMatrix", name)
    end = start + 144 + length + (-length % 8)
    new = lime_record("scidac-private-record-xml", body, 0x80)
    return content[:start] + new + content[end:]


@pytest.mark.parametrize("style", ["qio", "tmlqcd", "simulateqcd"])
def test_styles_from_nothing(tmp_path, make_configuration, style):
    configuration = make_configuration(DIMS, metadata={"SEQUENCE_NUMBER": "5"})
    write(tmp_path / "conf", configuration, "ildg", style=style)
    again = read(tmp_path / "conf")
    assert again.links.tobytes() == configuration.links.tobytes()
    assert again.checksum.ok
    assert again.number == (None if style == "simulateqcd" else 5)
    write(tmp_path / "again", again, "ildg", style=style)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "conf").read_bytes()
    with pytest.raises(FormatError, match=r"SU\(2\)"):
        write(tmp_path / "conf", make_configuration(DIMS, nc=2), "ildg", style=style)


def test_what_simulateqcd_cannot_find_is_told(tmp_path, make_configuration):
    small = make_configuration((4, 4, 4, 4), precision=32)
    (warning,) = write(tmp_path / "conf", small, "ildg", style="simulateqcd")
    assert "not found by SIMULATeQCD" in warning


REAL = [
    ("nersc/nersc.l8t4b3360", "nersc", {"style": "simulateqcd"}),
    ("nersc/glu-lat..400", "nersc", {"style": "cps", "rows": "2", "byte_order": "little"}),
    ("nersc/qlua-random-gauge.nersc", "nersc", {"style": "qdp++", "rows": "2"}),
    ("scidac/weak_field.lime", "ildg", {"style": "qio"}),
    ("milc/lat.sample.l4444.ildg", "ildg", {"style": "qio"}),
    ("scidac/unity.lime", "ildg", {"style": "tmlqcd"}),
    ("ildg/ildg.l8t4b3360", "ildg", {"style": "simulateqcd"}),
    ("milc/lat.sample.l4444", "milc", {}),
    ("milc/lat.sample.l4448", "milc", {"byte_order": "big"}),
    ("milc/lat.sample.l8888", "milc", {}),
]


@pytest.mark.parametrize(("name", "format", "options"), REAL)
def test_real_files(real_file, tmp_path, name, format, options):
    original = real_file(name)
    conversion = convert(original, tmp_path / "copy", format, options=options)
    assert (tmp_path / "copy").read_bytes() == original.read_bytes()
    assert not any("no place" in text for text in conversion.warnings)
    write(tmp_path / "memory", read(original), format, **options)
    assert (tmp_path / "memory").read_bytes() == original.read_bytes()


def test_a_real_header_with_more_digits_than_qdp_prints(real_file, tmp_path):
    original = real_file("nersc/qdpxx-t_nersc.cfg")  # the numbers are another code's, ten digits
    convert(original, tmp_path / "copy", "nersc", options={"style": "qdp++", "rows": "2"})
    expected = original.read_bytes().replace(b"= 0.4630322094\n", b"= 0.463032\n")
    expected = expected.replace(b"= 0.0382422893\n", b"= 0.0382423\n")
    assert (tmp_path / "copy").read_bytes() == expected
