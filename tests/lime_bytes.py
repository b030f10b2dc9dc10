"""LIME files built byte by byte, without the package's writers."""

import struct
import zlib

from flowmc_adapters import link_trace, plaquettes


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
