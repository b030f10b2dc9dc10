"""Configurations that are a little, or entirely, wrong: shipped ones, changed by a seed."""

import copy
import random
import tomllib
from pathlib import Path

from tests.processes import ROOT

HUGE = 10**400
VALUES = [
    *(None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, -(2**63), 10**9, HUGE),
    *(0.0, -0.5, 0.5, 1e-300, 1e300, -1e300, float("nan"), float("inf"), -float("inf")),
    *("", ":", "x", "builtins:int", "builtins:dict", "os:system", "os", "a.b:c", "..a:b", "a:b:c"),
    *("1h", "-1h", "0s", "nan", "inf", "\0", "\n", "ä" * 300, "zoo:", "zoo:x", "/dev/null", "."),
    *("SU(3)", "SU(0)", "SU(1000)", "U(1)", "hmc", "phi4", "wilson", "gaussian", "identity"),
    *([], [[]], [0], [1, 2], [-4, 4], [10**9, 4], [4] * 40, ["x"], [1.5, "x"], [float("nan")]),
    *({}, {"x": 1}, {"x": {"x": {}}}, [{}], [{"kernel": "hmc"}], [{"x": 1}, 3]),
    *(tomllib.loads("a = 2020-01-01")["a"], tomllib.loads("a = 07:30:00")["a"]),
]
KEYS = ["x", "lambda", "kernel", "steps", "name", "action", "", "seed", "flow", "self", "field"]


def examples():
    """Return the shipped configurations by their path."""
    return sorted((ROOT / "examples").rglob("*.toml"))


def places(table, path=()):
    """Yield the path of every value in nested tables and lists."""
    items = table.items() if isinstance(table, dict) else enumerate(table)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def mutated(tables, draw):
    """Return tables with one to three changes, and what was changed."""
    tables, said = copy.deepcopy(tables), []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        found = list(places(tables))
        if not found:
            break
        *way, last = draw.choice(found)
        parent = tables
        for key in way:
            parent = parent[key]
        value = copy.deepcopy(draw.choice(VALUES))
        kind = draw.random()
        if kind < 0.1:
            said.append(f"without {(*way, last)}")
            del parent[last]
        elif kind < 0.2 and isinstance(parent, dict):
            key = draw.choice(KEYS)
            said.append(f"{(*way, key)} = {value!r}")
            parent[key] = value
        elif kind < 0.3:
            # What stands elsewhere in the file.
            *other, name = draw.choice(found)
            source = tables
            try:
                for key in other:
                    source = source[key]
                parent[last] = copy.deepcopy(source[name])
            except (KeyError, IndexError, TypeError):
                continue
            said.append(f"{(*way, last)} from {(*other, name)}")
        else:
            number = parent[last]
            if isinstance(number, (int, float)) and kind < 0.5:
                # Integers that have been multiplied often are no floats any more.
                third = number / 3 if abs(number) < 1e300 else 0.5
                value = draw.choice([-number, number * 10, number + 1, third, 10**9, 2**31])
            said.append(f"{(*way, last)} = {value!r}")
            parent[last] = value
    return tables, "; ".join(said)[:1000]


def kind_of(tables):
    """Return which command a shipped configuration is for."""
    for name, command in {
        "free_energy": "free-energy",
        "training": "train",
        "derivative": "correlate",
        "target": "correlate",
        "run": "run",
    }.items():
        if name in tables:
            return command
    return "correlate"


def seeded(path: Path, number: int) -> random.Random:
    """Return the stream of one mutation of one file."""
    return random.Random(f"{path.relative_to(ROOT)} {number}")
