"""Checksums against their definitions, word by word and site by site."""

import pickle
import struct
import zlib

import numpy as np
import pytest
from flowmc_adapters.checksums import (
    MilcChecksum,
    NerscChecksum,
    ScidacChecksum,
    parse_hexadecimal,
    rotate_left,
)

# More sites than 29 * 31 = 899, so that every class of the folded sums is hit twice.
SITE_BYTES, SITES = 64, 2000


def rotate_one(word, shift):
    bits = f"{word:032b}"
    return int(bits[shift:] + bits[:shift], 2)


def scidac_by_definition(data):
    suma = sumb = 0
    for rank, site in enumerate(data.reshape(-1, SITE_BYTES)):
        code = zlib.crc32(site.tobytes())
        suma ^= rotate_one(code, rank % 29)
        sumb ^= rotate_one(code, rank % 31)
    return f"{suma:x} {sumb:x}"


def milc_by_definition(data, order):
    sum29 = sum31 = 0
    for i, word in enumerate(struct.unpack(f"{order}{data.size // 4}I", data.tobytes())):
        sum29 ^= rotate_one(word, i % 29)
        sum31 ^= rotate_one(word, i % 31)
    return f"{sum29:x} {sum31:x}"


def nersc_by_definition(data, order):
    return f"{sum(struct.unpack(f'{order}{data.size // 4}I', data.tobytes())) % 2**32:x}"


KINDS = {
    "scidac": (lambda: ScidacChecksum(SITE_BYTES), scidac_by_definition),
    "nersc >": (lambda: NerscChecksum(">"), lambda data: nersc_by_definition(data, ">")),
    "nersc <": (lambda: NerscChecksum("<"), lambda data: nersc_by_definition(data, "<")),
    "milc >": (lambda: MilcChecksum(SITE_BYTES, ">"), lambda data: milc_by_definition(data, ">")),
    "milc <": (lambda: MilcChecksum(SITE_BYTES, "<"), lambda data: milc_by_definition(data, "<")),
}


@pytest.fixture(params=list(KINDS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(2).integers(0, 256, size=SITE_BYTES * SITES, dtype=np.uint8)


def slabs(data, sizes):
    """(first site, bytes) of consecutive slabs whose numbers of sites go through `sizes`."""
    first, found = 0, []
    while first * SITE_BYTES < data.size:
        count = sizes[len(found) % len(sizes)]
        found.append((first, data[first * SITE_BYTES : (first + count) * SITE_BYTES]))
        first += count
    return found


def test_rotation_by_every_amount():
    words = np.random.default_rng(1).integers(0, 2**32, size=32, dtype=np.uint32)
    rotated = rotate_left(words, np.arange(32, dtype=np.uint64))
    expected = [rotate_one(int(word), shift) for shift, word in enumerate(words)]
    assert rotated.tolist() == expected


@pytest.mark.parametrize("sizes", [[2000], [1], [7, 1, 60], [899], [898, 900], [1798, 3]])
def test_any_split_in_any_order_gives_the_definition(kind, data, sizes):
    make, definition = KINDS[kind]
    checksum, parts = make(), slabs(data, sizes)
    for i in np.random.default_rng(3).permutation(len(parts)):
        checksum.update(*parts[i])
    assert checksum.text == definition(data)
    assert checksum.kind == kind.split()[0]


def test_merged_from_several_ranks_through_pickles(kind, data):
    make, definition = KINDS[kind]
    ranks = [make() for _ in range(5)]
    for i, part in enumerate(slabs(data, [17, 400, 3])):
        ranks[i % 4].update(*part)  # the fifth has nothing
    total, *others = (pickle.loads(pickle.dumps(rank)) for rank in ranks)
    for other in others:
        total.absorb(other)
    assert total.text == definition(data)
    total.update(0, data[:SITE_BYTES])  # goes on working
    assert total.text != definition(data)


def test_of_nothing_and_of_few_sites(kind, data):
    make, definition = KINDS[kind]
    assert set(make().text.split()) == {"0"}
    for count in (1, 2, 28, 30, 32):
        checksum = make()
        checksum.update(0, data[: count * SITE_BYTES])
        assert checksum.text == definition(data[: count * SITE_BYTES])


@pytest.mark.parametrize(
    ("fault", "seen_by"),
    [
        ("two sites swapped", {"scidac", "milc"}),  # a plain sum does not know the order
        ("rank off by one", {"scidac", "milc"}),
        ("slab twice", {"scidac", "milc", "nersc"}),
        ("slab missing", {"scidac", "milc", "nersc"}),
        ("one bit", {"scidac", "milc", "nersc"}),
    ],
)
def test_faults_are_noticed(kind, data, fault, seen_by):
    make, definition = KINDS[kind]
    parts = slabs(data, [100])
    if fault == "two sites swapped":
        sites = data.reshape(-1, SITE_BYTES).copy()
        sites[[5, 6]] = sites[[6, 5]]
        parts = slabs(sites.reshape(-1), [100])
    elif fault == "rank off by one":
        parts[3] = (parts[3][0] + 1, parts[3][1])
    elif fault == "slab twice":
        parts.append(parts[3])
    elif fault == "slab missing":
        del parts[3]
    else:
        changed = data.copy()
        changed[12345] ^= 4
        parts = slabs(changed, [100])
    checksum = make()
    for part in parts:
        checksum.update(*part)
    assert (checksum.text != definition(data)) == (checksum.kind in seen_by)


def test_words_of_the_other_byte_order_give_another_sum(data):
    assert nersc_by_definition(data, ">") != nersc_by_definition(data, "<")
    assert milc_by_definition(data, ">") != milc_by_definition(data, "<")


@pytest.mark.parametrize("site_bytes", [4 * 72, 3 * 32, 4 * 144 * 3, 12])
def test_site_sizes_that_occur(site_bytes):
    """SU(3) and SU(2) in 32 bit, three dimensions, a multiple of four bytes only."""
    raw = np.random.default_rng(5).integers(0, 256, size=site_bytes * 1000, dtype=np.uint8)
    checksum = ScidacChecksum(site_bytes)
    checksum.update(0, raw)
    suma = 0
    for rank, site in enumerate(raw.reshape(-1, site_bytes)):
        suma ^= rotate_one(zlib.crc32(site.tobytes()), rank % 29)
    assert checksum.sums[0] == suma


@pytest.mark.parametrize(
    ("text", "value"),
    [("3c553b", 0x3C553B), ("0x3c553b", 0x3C553B), (" 3C553B\n", 0x3C553B), ("003c553b", 0x3C553B)]
    + [(text, None) for text in ("", "xyz", "1ffffffff", "-1")],
)
def test_hexadecimal_as_other_codes_print_it(text, value):
    assert parse_hexadecimal(text) == value
