"""Ways in which a run directory can be damaged, drawn at random."""

import json
import os
import random
import shutil
from pathlib import Path

import h5py
import numpy as np

FILES = ("checkpoint.h5", "measurements.h5", "config.toml", "provenance.json", "log.jsonl")
# What JSON, TOML or an attribute may hold in place of what belongs there.
VALUES = (
    None,
    True,
    -1,
    0,
    3,
    10**30,
    1.5,
    1e308,
    float("nan"),
    "",
    "text",
    [],
    [[]],
    {},
    {"a": 1},
)


def damage(directory: Path, seed: int) -> tuple[str, str]:
    """Damage one file of a run directory; return its name and what was done."""
    draw = random.Random(seed)
    name = draw.choice(FILES)
    path = directory / name
    ways = [remove, truncate, flip, flip, overwrite, insert, replace]
    if path.suffix == ".h5":
        ways += [restructure] * 6
    else:
        ways += [edit_text] * 4
    if path.suffix in (".json", ".jsonl"):
        ways += [edit_json] * 4
    way = draw.choice(ways)
    return name, f"{name}, {way.__name__}: {way(path, draw)}"


def remove(path, draw):
    path.unlink()


def truncate(path, draw):
    length = draw.randrange(path.stat().st_size)
    os.truncate(path, length)
    return length


def flip(path, draw):
    content = bytearray(path.read_bytes())
    places = [draw.randrange(8 * len(content)) for _ in range(draw.choice((1, 1, 1, 10)))]
    for place in places:
        content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    return places


def overwrite(path, draw):
    content = bytearray(path.read_bytes())
    begin = draw.randrange(len(content))
    length = draw.choice((1, 8, 64, 512))
    new = draw.choice((bytes(length), b"\xff" * length, draw.randbytes(length)))
    content[begin : begin + length] = new
    path.write_bytes(content[: path.stat().st_size])
    return begin, new[:8]


def insert(path, draw):
    content = path.read_bytes()
    begin = draw.randrange(len(content) + 1)
    path.write_bytes(content[:begin] + draw.randbytes(draw.choice((1, 100))) + content[begin:])
    return begin


def replace(path, draw):
    """By something else of this name."""
    content = path.read_bytes()
    path.unlink()
    kind = draw.choice(("empty", "directory", "fifo", "dangling", "loop", "device", "other"))
    if kind == "empty":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif path.suffix == ".h5":
        shutil.copy(path.with_name("config.toml"), path)
    else:
        path.write_bytes(b"\x89HDF\r\n\x1a\n" + content)
    return kind


def restructure(path, draw):
    """Change a dataset, group or attribute by means of HDF5 itself."""
    with h5py.File(path, "r+", locking=False) as file:
        names = []
        file.visit(names.append)
        name = draw.choice(names)
        item = file[name]
        way = draw.choice(
            ("delete", "attribute", "attribute", "type", "shape", "group", "soft", "external link",
             "external data", "virtual", "chunked", "scalar", "text", "huge", "swap")
        )  # fmt: skip
        if way == "attribute":
            owner = draw.choice([file, item])
            if not owner.attrs:
                owner = file
            key = draw.choice(list(owner.attrs))
            value = draw.choice(VALUES)
            del owner.attrs[key]
            if value is not None:
                text = isinstance(value, list | dict)
                owner.attrs[key] = json.dumps(value) if text else float_or(value)
            return name, key, value
        shape = item.shape if isinstance(item, h5py.Dataset) else (2,)
        values = item[()] if isinstance(item, h5py.Dataset) else np.zeros(2)
        if way == "swap":
            other = draw.choice(names)
            if other.startswith(name) or name.startswith(other):
                return way
            file.move(name, "aside")
            file.move(other, name)
            file.move("aside", other)
            return name, other
        del file[name]
        if way == "type":
            file[name] = np.asarray(values).astype(draw.choice(("f4", "i4", "u1", "c16", "S3")))
        elif way == "shape":
            file[name] = np.zeros(draw.choice(((0,), (1,), (1, 1), (7, 3, 2, 2, 2), (*shape, 2))))
        elif way == "group":
            file.create_group(name)
        elif way == "soft":
            file[name] = h5py.SoftLink(draw.choice(("/", "/nowhere", f"/{name}")))
        elif way == "external link":
            file[name] = h5py.ExternalLink(draw.choice(("config.toml", "/etc/passwd")), "/")
        elif way == "external data":
            file.create_dataset(name, shape, values.dtype, external="/etc/passwd")
        elif way == "virtual":
            layout = h5py.VirtualLayout(shape, values.dtype)
            file.create_virtual_dataset(name, layout)
        elif way == "chunked" and 0 not in shape and shape:
            file.create_dataset(name, data=values, chunks=True, compression="gzip")
        elif way == "scalar":
            file[name] = 3.0
        elif way == "text":
            file[name] = "text"
        elif way == "huge":
            file.create_dataset(name, (2**40, *shape[1:]), values.dtype)
        return name, way


def float_or(value):
    return float(value) if isinstance(value, int) and abs(value) > 2**62 else value


def edit_text(path, draw):
    lines = path.read_text().splitlines(keepends=True)
    index = draw.randrange(len(lines))
    way = draw.choice(("delete", "double", "value", "value", "value", "nesting", "bytes", "long"))
    if way == "delete":
        del lines[index]
    elif way == "double":
        lines.insert(index, lines[index])
    elif way == "value" and "=" in lines[index]:
        key = lines[index].partition("=")[0]
        new = draw.choice(
            ("-1", "1.5", '"text"', "[]", "{}", "true", "nan", "9" * 40, "1979-05-27")
        )
        lines[index] = f"{key}= {new}\n"
    elif way == "nesting":
        lines[index] = f"a = {'[' * 5000}\n"
    elif way == "bytes":
        path.write_bytes("".join(lines).encode() + b"\xff\xfe\x00")
        return way
    else:
        lines[index] = f"{'x' * 10**4} = 1\n"
    path.write_text("".join(lines))
    return way, index


def edit_json(path, draw):
    """Put another value somewhere into a JSON document, or into one of its lines."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    index = draw.randrange(len(lines))
    document = json.loads(lines[index])
    owner, where = document, []
    while True:
        keys = list(owner) if isinstance(owner, dict) else range(len(owner))
        key = draw.choice(list(keys))
        where.append(key)
        inner = owner[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.4:
            break
        owner = inner
    value = draw.choice(VALUES)
    if draw.random() < 0.2 and isinstance(owner, dict):
        del owner[key]
    else:
        owner[key] = value
    lines[index] = json.dumps(document)
    path.write_text("\n".join(lines) + "\n")
    return index, where, value
