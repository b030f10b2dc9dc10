"""MILC files built here byte by byte, and those of MILC itself."""

import pickle
import struct

import numpy as np
import pytest
from flowmc_adapters import (
    CheckError,
    FormatError,
    convert,
    inspect,
    link_trace,
    plaquettes,
    read,
    read_header,
    write,
)
from flowmc_adapters.milc.binary import _MilcSums

DIMS = (4, 2, 6, 8)
STAMP = b"Thu Feb 12 13:40:21 1998"


def payload(links, order="<"):
    """Site by site in natural order, with no code of the package."""
    lt, lz, ly, lx = links.shape[:4]
    sites = []
    for t in range(lt):
        for z in range(lz):
            for y in range(ly):
                for x in range(lx):
                    numbers = []
                    for mu in range(4):
                        for row in range(3):
                            for column in range(3):
                                element = links[t, z, y, x, mu, row, column]
                                numbers += [element.real, element.imag]
                    sites.append(struct.pack(f"{order}72f", *numbers))
    return sites


def rotated(word, shift):
    bits = f"{word:032b}"
    return int(bits[shift:] + bits[:shift], 2)


def milc_sums(data, order):
    sum29 = sum31 = 0
    for i, word in enumerate(struct.unpack(f"{order}{len(data) // 4}I", data)):
        sum29 ^= rotated(word, i % 29)
        sum31 ^= rotated(word, i % 31)
    return sum29, sum31


def milc_bytes(sites, dims=DIMS, order="<", site_list=None, sums=None):
    data = b"".join(sites if site_list is None else [sites[site] for site in site_list])
    head = struct.pack(f"{order}5i64si", 20103, *dims, STAMP, site_list is not None)
    if site_list is not None:
        head += struct.pack(f"{order}{len(site_list)}i", *site_list)
    return head + struct.pack(f"{order}2I", *(sums or milc_sums(data, order))) + data


def even_sites_first(dims=DIMS):
    """As a run on several nodes leaves them: node by node along t, even sites before odd ones."""
    lx, ly, lz, lt = dims
    return [
        x + lx * (y + ly * (z + lz * t))
        for half in (range(lt // 2), range(lt // 2, lt))
        for parity in (0, 1)
        for t in half
        for z in range(lz)
        for y in range(ly)
        for x in range(lx)
        if (x + y + z + t) % 2 == parity
    ]


@pytest.fixture
def links(make_links):
    return make_links(DIMS, precision=32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lat.300"


@pytest.mark.parametrize("order", "<>")
def test_natural_order(path, links, order):
    content = milc_bytes(payload(links, order), order=order)
    path.write_bytes(content)
    configuration = read(path)
    assert (configuration.format, configuration.dims) == ("milc", DIMS)
    assert configuration.links.tobytes() == links.tobytes()
    assert configuration.checksum.ok
    assert configuration.warnings == []
    assert configuration.metadata == {"time_stamp": STAMP.decode()}
    header = read_header(path)
    assert header.layout.offset + header.layout.total_bytes == len(content)
    assert (header.writer, header.checksum.computed) == ("MILC", None)
    byte_order = {"<": "little", ">": "big"}[order]
    write(path, configuration, "milc", byte_order=byte_order)
    assert path.read_bytes() == content


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["even first", "shuffled", "natural"])
def test_sites_in_an_order_of_their_own(path, links, order, kind):
    volume = int(np.prod(DIMS))
    site_list = {
        "even first": even_sites_first(),
        "shuffled": np.random.default_rng(4).permutation(volume).tolist(),
        "natural": list(range(volume)),
    }[kind]
    path.write_bytes(milc_bytes(payload(links, order), order=order, site_list=site_list))
    configuration = read(path)
    assert configuration.links.tobytes() == links.tobytes()
    assert configuration.checksum.ok
    assert read_header(path).layout is None
    convert(path, path.with_name("natural"), "milc")
    assert path.with_name("natural").read_bytes() == milc_bytes(payload(links))


def test_a_large_field_with_a_site_list_is_read_by_several_threads(path, make_links):
    dims = (16, 12, 14, 16)
    links = make_links(dims, precision=32)
    sites = links.reshape(-1, 72).view("f4").reshape(len(links.reshape(-1, 36)), -1)
    order = np.random.default_rng(4).permutation(len(sites))
    sums = (0, 0)
    head = struct.pack("<5i64si", 20103, *dims, STAMP, 1)
    path.write_bytes(
        head + order.astype("<i4").tobytes() + struct.pack("<2I", *sums) + sites[order].tobytes()
    )
    configuration = read(path, check_checksum=False)
    assert configuration.links.tobytes() == links.tobytes()
    words = sites[order].view(np.uint32).ravel()
    expected = []
    for modulus in (29, 31):
        shifts = (np.arange(len(words)) % modulus).astype(np.uint64)
        wide = words.astype(np.uint64) << shifts
        folded = (wide | (wide >> np.uint64(32))) & np.uint64(0xFFFFFFFF)
        expected.append(f"{np.bitwise_xor.reduce(folded):x}")
    assert configuration.checksum.computed == " ".join(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sites: [sites[1], *sites[1:]], "does not name site"),
        (lambda sites: [len(sites), *sites[1:]], "names site"),
        (lambda sites: [*sites[:-1], -1], "names site"),
    ],
)
def test_damaged_site_lists(path, links, change, message):
    sites = payload(links)
    wrong = change(even_sites_first())
    data = b"".join(sites)
    head = struct.pack("<5i64si", 20103, *DIMS, STAMP, 1)
    path.write_bytes(head + struct.pack(f"<{len(wrong)}i2I", *wrong, 0, 0) + data)
    with pytest.raises(FormatError, match=message) as caught:
        read(path)
    assert caught.value.offset is not None


def test_a_number_that_is_not_finite_is_found_in_its_place(path, links):
    links[5, 4, 1, 2, 3, 0, 1] = np.nan
    site_list = even_sites_first()
    content = milc_bytes(payload(links), site_list=site_list)
    path.write_bytes(content)
    with pytest.raises(CheckError, match=r"site \[2,1,4,5\], mu = t") as caught:
        read(path)
    rank = 2 + 4 * (1 + 2 * (4 + 6 * 5))
    assert caught.value.offset == len(content) - 288 * (len(site_list) - site_list.index(rank))


@pytest.mark.parametrize("with_list", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_a_flipped_bit_is_noticed(path, links, order, with_list):
    site_list = even_sites_first() if with_list else None
    content = bytearray(milc_bytes(payload(links, order), order=order, site_list=site_list))
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckError, match="checksum does not match"):
        read(path)
    configuration = read(path, check_checksum=False)
    assert list(configuration.failed_checks) == ["checksum"]


def test_sums_in_the_wrong_order_are_noticed(path, links):
    sites = payload(links)
    path.write_bytes(milc_bytes(sites, sums=milc_sums(b"".join(sites), "<")[::-1]))
    with pytest.raises(CheckError, match="checksum"):
        read(path)


@pytest.mark.parametrize("with_list", [False, True])
def test_truncation_anywhere(path, links, with_list):
    content = milc_bytes(payload(links), site_list=even_sites_first() if with_list else None)
    cuts = [4, 19, 20, 83, 87, 88, 95, 96, 500, len(content) // 2, len(content) - 1]
    for cut in cuts:
        path.write_bytes(content[:cut])
        with pytest.raises(FormatError) as caught:
            read(path)
        assert str(path) in str(caught.value)
    path.write_bytes(content + b"more")
    with pytest.raises(CheckError, match="4 bytes follow"):
        read(path)
    assert any("4 bytes follow" in text for text in read(path, check_checksum=False).warnings)
    path.write_bytes(content + bytes(4))
    assert any("4 bytes follow" in text for text in read(path).warnings)


@pytest.mark.parametrize("extent", [0, -4, 2**31 - 1])
@pytest.mark.parametrize("with_list", [False, True])
def test_impossible_extents(path, links, extent, with_list):
    content = bytearray(milc_bytes(payload(links), site_list=range(384) if with_list else None))
    for position in (4, 16):
        struct.pack_into("<i", content, position, extent)
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"extents|announces"):
        read(path)


@pytest.mark.parametrize("with_list", [False, True])
def test_random_damage(path, links, with_list):
    content = milc_bytes(payload(links), site_list=even_sites_first() if with_list else None)
    original = read_bytes_of(path, content).links
    rng = np.random.default_rng(7)
    for _ in range(100):
        damaged = bytearray(content)
        reach = 2000 if rng.random() < 0.7 else len(content)
        position = int(rng.integers(reach))
        kind = rng.integers(3)
        if kind == 0:
            damaged[position : position + 4] = rng.bytes(4)
        elif kind == 1:
            del damaged[position : position + int(rng.integers(1, 200))]
        else:
            damaged[position:position] = rng.bytes(int(rng.integers(1, 200)))
        try:
            found = read_bytes_of(path, damaged)
        except FormatError:
            continue
        assert np.array_equal(found.links, original)


def read_bytes_of(path, content):
    path.write_bytes(content)
    return read(path)


@pytest.mark.parametrize("order", "<>")
def test_versions_1_to_4(path, links, order):
    head = struct.pack(f"{order}5i2f", 59354, *DIMS, 6.0, 0.25)
    path.write_bytes(head + b"".join(payload(links, order)))
    configuration = read(path)
    assert configuration.links.tobytes() == links.tobytes()
    assert configuration.metadata == {"milc.c1": "6", "milc.c2": "0.25"}
    assert configuration.warnings == ["no checksum in this file: damage would go unnoticed"]
    assert read_header(path).writer == "MILC version 1-4"


@pytest.mark.parametrize("order", "<>")
def test_files_of_fnal(path, links, order):
    head = struct.pack(f"{order}9i", 0x71626434, 892000000, 4, 72, *DIMS, 0)
    data = b"".join(payload(links, order))
    path.write_bytes(head + data)
    configuration = read(path)
    assert configuration.links.tobytes() == links.tobytes()
    assert configuration.metadata == {"milc.gmtime": "892000000"}
    assert read_header(path).writer == "FNAL (old MILC)"
    for position, value in ((8, 8), (12, 36), (32, 1)):
        changed = bytearray(head)
        struct.pack_into(f"{order}i", changed, position, value)
        path.write_bytes(changed + data)
        with pytest.raises(FormatError):
            read(path)


def test_double_precision_is_rounded_only_when_asked(tmp_path, make_configuration):
    configuration = make_configuration(DIMS)
    with pytest.raises(FormatError, match="--precision 32"):
        write(tmp_path / "lat", configuration, "milc")
    warnings = write(tmp_path / "lat", configuration, "milc", precision=32)
    assert any("rounded from 64 to 32" in text for text in warnings)
    assert np.array_equal(read(tmp_path / "lat").links, configuration.links.astype(np.complex64))


def test_what_does_not_fit_is_refused(tmp_path, make_configuration):
    with pytest.raises(FormatError, match=r"SU\(3\)"):
        write(tmp_path / "lat", make_configuration(DIMS, nc=2, precision=32), "milc")
    with pytest.raises(FormatError, match="four-dimensional"):
        write(tmp_path / "lat", make_configuration((4, 2, 6), precision=32), "milc")
    with pytest.raises(ValueError, match="byte_order"):
        write(tmp_path / "lat", make_configuration(DIMS, precision=32), "milc", byte_order="middle")
    assert list(tmp_path.iterdir()) == []


def nersc_sum(links):
    """Sum of the words of the first two rows."""
    words = np.ascontiguousarray(links[..., :2, :]).view("<u4")
    return int(words.sum(dtype=np.uint64)) % 2**32


@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_the_info_file(path, make_configuration, byte_order):
    metadata = {
        "time_stamp": STAMP.decode(),
        "gauge.beta11": "6.000000",
        "action.description": '"Pure gauge"',
        "SEQUENCE_NUMBER": "300",
        "CHECKSUM": "stale",
        "gauge.ssplaq": "stale",
        "xlf-info": "plaquette = 3\n",
        "two.lines": "a\nnt = 3",
    }
    configuration = make_configuration(DIMS, precision=32, metadata=metadata)
    links = configuration.links
    warnings = write(path, configuration, "milc", byte_order=byte_order)
    assert warnings == ["milc files have no place for: two.lines, xlf-info"]
    sum29, sum31 = struct.unpack_from({"little": "<2I", "big": ">2I"}[byte_order],
                                      path.read_bytes(), 88)  # fmt: skip
    mean = plaquettes(links)
    assert path.with_name("lat.300.info").read_text() == (
        "magic_number = 20103\n"
        'time_stamp = "Thu Feb 12 13:40:21 1998"\n'
        f'checksums = "{sum29:x} {sum31:x}"\n'
        "nx = 4\nny = 2\nnz = 6\nnt = 8\n"
        "gauge.beta11 = 6.000000\n"
        'action.description = "Pure gauge"\n'
        f"gauge.ssplaq = {3 * mean.space:f}\n"
        f"gauge.stplaq = {3 * mean.time:f}\n"
        f"gauge.nersc_linktr = {link_trace(links):f}\n"
        f"gauge.nersc_checksum = {nersc_sum(links)}\n"
        "SEQUENCE_NUMBER = 300\n"
    )
    again = read(path)
    assert again.warnings == []
    assert again.number == 300
    assert again.metadata == {
        key: metadata[key]
        for key in ("time_stamp", "gauge.beta11", "action.description", "SEQUENCE_NUMBER")
    }
    assert again.stored_plaquette == pytest.approx(mean.mean, abs=1e-6)


@pytest.mark.parametrize("order", "<>")
def test_sums_are_shared_between_workers(links, order):
    data = np.frombuffer(b"".join(payload(links, order)), dtype=np.uint8)
    whole, first, second = (_MilcSums(288, order) for _ in range(3))
    whole.update(0, data)
    first.update(0, data[: 288 * 100])
    second.update(100, data[288 * 100 :])
    first.absorb(pickle.loads(pickle.dumps(second)))
    assert first.sums == whole.sums == milc_sums(data.tobytes(), order)
    assert first.nersc_sum == whole.nersc_sum == nersc_sum(links)


@pytest.mark.parametrize("equals", [" = ", " ", "\t", "="])
def test_spellings_of_the_info_file(path, links, equals):
    path.write_bytes(milc_bytes(payload(links)))
    mean = plaquettes(links)
    sums = "{:08x} {:x}".format(*milc_sums(b"".join(payload(links)), "<"))
    items = {
        "nx": 4,
        "nt": 8,
        "checksums": f'"{sums}"',
        "gauge.ssplaq": f"{3 * mean.space:.6f}",
        "gauge.stplaq": f"{3 * mean.time:.6f}",
        "action.description": '"a = b"',
        "empty.item": "",
        "SEQUENCE_NUMBER": "12",
    }
    text = "\n".join(f"{key}{equals}{value}" for key, value in items.items()) + "\n\n???\n"
    path.with_name("lat.300.info").write_text(text)
    configuration = read(path)
    assert configuration.number == 12
    assert configuration.metadata["action.description"] == '"a = b"'
    assert configuration.warnings == []
    assert configuration.stored_plaquette == pytest.approx(mean.mean, abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [("nt = 6", "nt = 6"), ('checksums = "1 2"', "checksums"), ("checksums = x", "checksums")],
)
def test_an_info_file_of_other_links_is_reported_and_ignored(path, links, wrong, what):
    path.write_bytes(milc_bytes(payload(links)))
    path.with_name("lat.300.info").write_text(f"{wrong}\ngauge.beta11 = 6\nSEQUENCE_NUMBER = 12\n")
    configuration = read(path)
    assert configuration.number is None
    assert "gauge.beta11" not in configuration.metadata
    (warning,) = configuration.warnings
    assert "lat.300.info is about other links" in warning
    assert what in warning


@pytest.mark.parametrize(
    ("key", "failing"),
    [("gauge.ssplaq", "plaquette"), ("gauge.nersc_linktr", "link_trace")],
)
def test_wrong_numbers_in_the_info_file_are_errors(path, make_configuration, key, failing):
    write(path, make_configuration(DIMS, precision=32), "milc")
    info = path.with_name("lat.300.info")
    lines = [
        f"{key} = {float(line.split(' = ')[1]) + 1e-3}" if line.startswith(key) else line
        for line in info.read_text().splitlines()
    ]
    info.write_text("\n".join(lines))
    with pytest.raises(CheckError):
        read(path)
    assert list(read(path, check_checksum=False).failed_checks) == [failing]


def test_an_info_file_that_cannot_be_used_is_no_obstacle(path, links):
    path.write_bytes(milc_bytes(payload(links)))
    info = path.with_name("lat.300.info")
    info.write_bytes(np.random.default_rng(1).bytes(5000))
    assert np.array_equal(read(path).links, links)
    info.unlink()
    info.mkdir()
    assert read(path).warnings == []


def test_time_stamps(path, make_configuration):
    configuration = make_configuration(DIMS, precision=32, metadata={"time_stamp": "é" * 70})
    assert any("time_stamp cut" in text for text in write(path, configuration, "milc"))
    # In UTF-8, and not cut inside a letter
    assert path.read_bytes()[20:84] == "é".encode() * 31 + b"\0\0"
    configuration.metadata = {"time_stamp": "one\nEND"}
    write(path, configuration, "milc")
    assert read(path).metadata == {"time_stamp": "one END"}
    configuration.metadata = {}
    write(path, configuration, "milc")
    assert read(path).metadata == {}


# name, order, plaquettes as MILC prints them (up to 3), their accuracy, link trace, NERSC sum
REAL = [
    ("lat.sample.l4444", "little", 1.7946751561, 1.7744257976, 5e-9, 0.64675874, 0xFFC4BB26),
    ("lat.sample.l4448", "big", 1.72375, 1.690586, 5e-6, None, None),
    ("lat.sample.l8888", "little", 1.7790021545, 1.7823592881, 5e-9, -0.00064563862, 0x4A3BBF43),
]


@pytest.mark.parametrize(("name", "order", "space", "time", "accuracy", "trace", "nersc"), REAL)
def test_real_files_are_read_and_written_again_byte_by_byte(
    real_file, path, name, order, space, time, accuracy, trace, nersc
):
    original = real_file(f"milc/{name}")
    report = inspect(original)
    assert (report["error"], report["warnings"], report["format"]) == (None, [], "milc")
    assert report["checksum"]["ok"] is True
    assert 3 * report["plaquette_space"] == pytest.approx(space, abs=accuracy, rel=0)
    assert 3 * report["plaquette_time"] == pytest.approx(time, abs=accuracy, rel=0)
    if trace is not None:
        assert report["link_trace"] == pytest.approx(trace, abs=5e-9)
    conversion = convert(original, path, "milc", options={"byte_order": order})
    assert conversion.warnings == []
    assert path.read_bytes() == original.read_bytes()
    info = path.with_name("lat.300.info").read_text()
    if nersc is not None:
        assert f"gauge.nersc_checksum = {nersc}\n" in info
    if name == "lat.sample.l8888":
        assert info == real_file(f"milc/{name}.info").read_text()


def test_a_real_file_of_versions_1_to_4(real_file, tmp_path):
    report = inspect(real_file("milc/lat.sample.inst"))
    assert report["writer"] == "MILC version 1-4"
    assert 3 * report["plaquette_space"] == pytest.approx(2.9730278123, abs=5e-10)
    assert 3 * report["plaquette_time"] == pytest.approx(2.9730278123, abs=5e-10)
    assert report["link_trace"] == pytest.approx(0.991627751, abs=1e-9)
    convert(real_file("milc/lat.sample.inst"), tmp_path / "new", "milc")
    info = (tmp_path / "new.info").read_text()
    assert f"gauge.nersc_checksum = {0xA0E19040}\n" in info


def test_the_same_field_as_ildg(real_file):
    milc = read(real_file("milc/lat.sample.l4444")).links
    assert milc.tobytes() == read(real_file("milc/lat.sample.l4444.ildg")).links.tobytes()


def test_a_schroedinger_functional_with_a_stale_checksum(real_file):
    path = real_file("milc/lat.sample.5p7")
    with pytest.raises(CheckError, match="2e218ab1 2d188e6b, computed 72d77a0a 19447b24"):
        read(path)
    configuration = read(path, check_checksum=False)
    assert list(configuration.failed_checks) == ["checksum"]
    assert any("stored 2e218ab1" in text for text in configuration.warnings)
    assert any("on time slice 0 only" in text for text in configuration.warnings)
    assert configuration.metadata["gauge.beta11"] == "5.700000"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_letters_outside_ascii_in_info_files(path, make_configuration, encoding):
    metadata = {"action.description": '"Lüscher"', "time_stamp": "März"}
    configuration = make_configuration(DIMS, precision=32, metadata=metadata)
    assert write(path, configuration, "milc") == []
    info = path.with_name(f"{path.name}.info")
    text = info.read_text(encoding="utf-8")
    assert 'action.description = "Lüscher"\n' in text
    info.write_bytes(text.encode(encoding))
    assert read(path).metadata == metadata
