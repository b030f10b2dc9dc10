"""Damage of all kinds, for `fuzzing`: from single bits to headers that lie."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from random import Random

_NUMBER = re.compile(rb"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.])")
_TEXTS = (
    b"", b"0", b"-1", b"-2", b"1", b"3", b"17", b"65536", b"2147483647", b"2147483648",
    b"-2147483648", b"4294967296", b"9223372036854775807", b"18446744073709551616", b"nan",
    b"-nan", b"inf", b"1e400", b"1e-400", b"0x10", b"1_0", b" 2 ", b"2.0", b"+2", b"02",
    b"9" * 400, b"9" * 5000, b"\xd9\xa2", b"\xff", b"\0", b"2 2", b"two", b"--2", b"1e999999999",
)  # fmt: skip
_INTEGERS = (
    0, 1, 2, 3, 4, 7, 8, 16, 17, 255, 256, 1000, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1,
    2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 2, 2**64 - 1,
)  # fmt: skip
_LIME_MAGIC = b"\x45\x67\x89\xab"
_WORDS = (
    b"nan",
    b"inf",
    b"\n",
    b"=",
    b"<",
    b">",
    b"</",
    b"\0",
    b"END_HEADER\n",
    b"<?xml",
    b"\\u0000",
)


class _Damage:
    """One mutation at a time, mostly outside the links.

    Args:
        random: the source of chance.
        payload: (first byte, bytes) of the links.
        pool: other files, to splice with.
    """

    def __init__(self, random: Random, payload: tuple[int, int], pool: Sequence[bytes]) -> None:
        self._random, self._pool = random, pool
        self._begin, self._end = payload[0], payload[0] + payload[1]

    def place(self, data: bytes) -> int:
        """A position, mostly outside the links, near the beginning more often."""
        size = max(1, len(data))
        for _ in range(4):
            reach = self._random.choice((32, 256, 2048, size, size))
            position = self._random.randrange(min(reach, size))
            if not self._begin <= position < self._end or self._random.random() < 0.05:
                break
        return position

    def flip_bit(self, data: bytearray) -> None:
        data[self.place(data)] ^= 1 << self._random.randrange(8)

    def set_byte(self, data: bytearray) -> None:
        value = self._random.choice(
            (0, 1, 0x20, 0x0A, 0x7F, 0x80, 0xFF, self._random.randrange(256))
        )
        data[self.place(data)] = value

    def set_integer(self, data: bytearray) -> None:
        width = self._random.choice((2, 4, 8))
        place = self.place(data)
        if self._random.random() < 0.8:
            place -= place % 4
        value = self._random.choice((*_INTEGERS, len(data), len(data) - 1, len(data) + 1))
        value %= 1 << (8 * width)
        order = self._random.choice(("little", "big"))
        data[place : place + width] = value.to_bytes(width, order)

    def shift_integer(self, data: bytearray) -> None:
        width = self._random.choice((1, 4, 8))
        place = self.place(data)
        place -= place % 4
        order = self._random.choice(("little", "big"))
        old = int.from_bytes(data[place : place + width], order)
        new = old + self._random.choice((-8, -2, -1, 1, 2, 8, 64, 4096, old))
        data[place : place + width] = (new % (1 << (8 * width))).to_bytes(width, order)

    def edit_number(self, data: bytearray) -> None:
        reach = max(self._begin, 4096)
        numbers = [match.span() for match in _NUMBER.finditer(bytes(data[:reach]))]
        numbers += [
            (begin + self._end, end + self._end)
            for begin, end in (
                match.span() for match in _NUMBER.finditer(bytes(data[self._end :][:4096]))
            )
            if self._end
        ]
        if not numbers:
            return self.set_integer(data)
        begin, end = self._random.choice(numbers[:500])
        text = self._random.choice(_TEXTS)
        if self._random.random() < 0.3:
            text = b"%d" % self._random.choice(_INTEGERS)
        if self._random.random() < 0.3:  # of the same length, so that record lengths stay true
            text = text[: end - begin].ljust(end - begin)
        data[begin:end] = text
        return None

    def insert_word(self, data: bytearray) -> None:
        place = self.place(data)
        word = self._random.choice(_WORDS)
        cover = self._random.choice((0, len(word)))
        data[place : place + cover] = word

    def lime_length(self, data: bytearray) -> None:
        places = [match.start() for match in re.finditer(_LIME_MAGIC, data)]
        if not places:
            return self.set_integer(data)
        place = self._random.choice(places)
        value = int.from_bytes(data[place + 8 : place + 16], "big")
        options = (value + 1, value - 1, value + 8, value - 8, 2 * value, value // 2, *_INTEGERS)
        data[place + 8 : place + 16] = (self._random.choice(options) % 2**64).to_bytes(8, "big")
        return None

    def truncate(self, data: bytearray) -> None:
        if self._random.random() < 0.5:
            del data[self.place(data) :]
        else:
            del data[len(data) - self._random.choice((1, 2, 4, 8, 100, 144, 576)) :]

    def insert(self, data: bytearray) -> None:
        place, count = self.place(data), self._random.choice((1, 1, 2, 4, 8, 100, 1000))
        filling = self._random.choice((b"\0", b"\n", b"9", b"\xff", None))
        new = self._random.randbytes(count) if filling is None else filling * count
        data[place:place] = new

    def delete(self, data: bytearray) -> None:
        place = self.place(data)
        del data[place : place + self._random.choice((1, 1, 2, 4, 8, 100, 1000))]

    def duplicate(self, data: bytearray) -> None:
        place = self.place(data)
        part = data[place : place + self._random.choice((1, 8, 64, 144, 1000, len(data)))]
        where = self._random.choice((place, self.place(data), len(data)))
        data[where:where] = part * self._random.choice((1, 1, 1, 2, 5))

    def move(self, data: bytearray) -> None:
        """Copy a part over another one."""
        count = self._random.choice((4, 8, 16, 144, 1000))
        part = data[self.place(data) :][:count]
        place = self.place(data)
        data[place : place + len(part)] = part

    def splice(self, data: bytearray) -> None:
        other = self._random.choice(self._pool)
        place = self.place(data)
        data[place:] = other[self._random.choice((place, self._random.randrange(len(other)))) :]

    def swap_bytes(self, data: bytearray) -> None:
        width = self._random.choice((2, 4, 8))
        begin = self._random.choice((0, self.place(data) // width * width, self._begin))
        count = self._random.choice((width, 4 * width, 5 * width, len(data)))
        part = bytes(data[begin : begin + count])
        part = part[: len(part) // width * width]
        swapped = b"".join(part[i : i + width][::-1] for i in range(0, len(part), width))
        data[begin : begin + len(part)] = swapped

    def change_lines(self, data: bytearray) -> None:
        head, rest = bytes(data[: max(self._begin, 1024)]), data[max(self._begin, 1024) :]
        lines = head.split(b"\n")
        if len(lines) < 3:
            return self.flip_bit(data)
        i, j = self._random.randrange(len(lines)), self._random.randrange(len(lines))
        what = self._random.randrange(4)
        if what == 0:
            del lines[i]
        elif what == 1:
            lines[i], lines[j] = lines[j], lines[i]
        elif what == 2:
            lines.insert(j, lines[i])
        else:
            lines[i] = lines[i][: self._random.randrange(len(lines[i]) + 1)]
        data[:] = b"\n".join(lines) + rest
        return None

    def set_real(self, data: bytearray) -> None:
        """A number among the links: not finite, huge, tiny."""
        size = max(1, self._end - self._begin) if self._end else len(data)
        width = self._random.choice((4, 8))
        place = self._begin + self._random.randrange(size) // width * width
        value = self._random.choice(
            (float("nan"), float("inf"), -float("inf"), 1e300, 1e-320, -0.0)
        )
        code = "d" if width == 8 else "f"
        if width == 4 and abs(value) in (1e300, 1e-320):
            value = 3e38
        data[place : place + width] = struct.pack(self._random.choice("<>") + code, value)


def mutated(
    random: Random, content: bytes, payload: tuple[int, int], pool: Sequence[bytes]
) -> tuple[bytes, str]:
    """Damaged content, and the names of the mutations done."""
    damage = _Damage(random, payload, pool)
    kinds: list[Callable[[bytearray], None]] = [
        damage.flip_bit, damage.set_byte, damage.set_integer, damage.shift_integer,
        damage.edit_number, damage.edit_number, damage.edit_number, damage.insert_word,
        damage.lime_length, damage.truncate, damage.insert, damage.delete, damage.duplicate,
        damage.move, damage.splice, damage.swap_bytes, damage.change_lines, damage.set_real,
    ]  # fmt: skip
    data, names = bytearray(content), []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if not data:
            break
        kind = random.choice(kinds)
        kind(data)
        names.append(kind.__name__)
    return bytes(data), ", ".join(names)
