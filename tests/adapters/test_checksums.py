"""Checksums against their definitions, byte by byte."""

import struct
import zlib

import numpy as np
import pytest
from flowmc_adapters.checksums import (
    NerscChecksum,
    ScidacChecksum,
    parse_hexadecimal,
    rotate_left,
)


def rotate_one(word, shift):
    bits = f"{word:032b}"
    return int(bits[shift:] + bits[:shift], 2)


def test_rotation_by_every_amount():
    words = np.random.default_rng(1).integers(0, 2**32, size=32, dtype=np.uint32)
    rotated = rotate_left(words, np.arange(32, dtype=np.uint64))
    expected = [rotate_one(int(word), shift) for shift, word in enumerate(words)]
    assert rotated.tolist() == expected


@pytest.mark.parametrize("pieces", [1, 3, 90])
def test_scidac_checksum_is_that_of_the_definition(pieces):
    site_bytes, sites = 64, 90  # more sites than 29 and 31, so that both moduli wrap
    data = np.random.default_rng(2).integers(0, 256, size=site_bytes * sites, dtype=np.uint8)
    checksum = ScidacChecksum(site_bytes)
    for piece in np.split(data, pieces):
        checksum.update(piece)
    suma = sumb = 0
    for rank in range(sites):
        code = zlib.crc32(data[rank * site_bytes : (rank + 1) * site_bytes].tobytes())
        suma ^= rotate_one(code, rank % 29)
        sumb ^= rotate_one(code, rank % 31)
    assert checksum.sums == (suma, sumb)
    assert checksum.text == f"{suma:x} {sumb:x}"


@pytest.mark.parametrize("order", "<>")
def test_nersc_checksum_is_the_sum_of_words(order):
    data = np.random.default_rng(3).integers(0, 256, size=4000, dtype=np.uint8)
    checksum = NerscChecksum()
    checksum.update(data[:1600])
    checksum.update(data[1600:])
    words = struct.unpack(f"{order}1000I", data.tobytes())
    assert checksum.value(order) == sum(words) % 2**32


@pytest.mark.parametrize(
    ("text", "value"),
    [("3c553b", 0x3C553B), ("0x3c553b", 0x3C553B), (" 3C553B\n", 0x3C553B), ("003c553b", 0x3C553B)]
    + [(text, None) for text in ("", "xyz", "1ffffffff", "-1")],
)
def test_hexadecimal_as_other_codes_print_it(text, value):
    assert parse_hexadecimal(text) == value
