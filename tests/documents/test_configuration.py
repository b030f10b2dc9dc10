"""The reference and the schemas of configurations say what the code says, and hold for examples."""

import copy
import json
import tomllib
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import jsonschema
import pytest

from flowmc.cli import main
from flowmc.config.kinds import KINDS
from flowmc.config.reference import reference
from flowmc.config.schema import json_schema

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "flowmc/config/schemas"
# Only [theory], for evaluate --config.
PARTIAL = {"phi4_sizes_14.toml"}


def kind_of(tables):
    if "free_energy" in tables:
        return "free-energy"
    if "training" in tables:
        return "train"
    if isinstance(tables.get("ensemble"), list):
        return "combine"
    return "correlate" if {"target", "derivative", "analysis"} & set(tables) else "run"


EXAMPLES = [
    path
    for folder in ("examples", "tests/run/earlier")
    for path in sorted((ROOT / folder).rglob("*.toml"))
    if path.name not in PARTIAL
]


@pytest.fixture(scope="module")
def validators():
    schemas = {kind: json_schema(kind) for kind in KINDS}
    for schema in schemas.values():
        jsonschema.Draft7Validator.check_schema(schema)
    return {kind: jsonschema.Draft7Validator(schema) for kind, schema in schemas.items()}


def test_the_page_is_that_of_the_code():
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == reference(), "flowmc schema --reference > docs/configuration.md"


@pytest.mark.parametrize("kind", KINDS)
def test_the_schemas_are_those_of_the_code(kind):
    stored = json.loads((SCHEMAS / f"{kind}.json").read_text(encoding="utf-8"))
    assert stored == json_schema(kind), f"flowmc schema {kind} > flowmc/config/schemas/{kind}.json"


def test_the_command_prints_schemas_and_kinds(capsys):
    assert main(["schema"]) == 0
    assert capsys.readouterr().out.split() == list(KINDS)
    assert main(["schema", "run"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["chains"]["properties"]["seed"]
    assert main(["schema", "trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err


def test_parts_of_installed_packages_are_in_what_the_command_prints(monkeypatch, capsys):
    own = EntryPoint("own", "flowmc.kernels:HMC", "flowmc.kernels")

    def entry_points(group):
        return EntryPoints([own] if group == own.group else [])

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    monkeypatch.setattr("flowmc.config.schema.entry_points", entry_points)
    assert main(["schema", "run"]) == 0
    variants = json.loads(capsys.readouterr().out)["properties"]["update"]["items"]["anyOf"]
    [found] = [one for one in variants if one["properties"]["kernel"].get("const") == "own"]
    assert "trajectory" in found["properties"]
    assert '"own"' not in json.dumps(json_schema("run"))


def test_examples_fit_their_schema(validators):
    kinds = set()
    for path in EXAMPLES:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        kinds.add(kind_of(tables))
        wrong = [one.message for one in validators[kind_of(tables)].iter_errors(tables)]
        assert not wrong, f"{path.name}: {wrong[0][:300]}"
    assert kinds == set(KINDS)


def test_unknown_keys_and_tables_fit_no_schema(validators):
    for path in EXAMPLES:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        is_valid = validators[kind_of(tables)].is_valid
        assert not is_valid({**tables, "unknown": {}})
        for name, table in tables.items():
            wrong = copy.deepcopy(tables)
            one = wrong[name][0] if isinstance(table, list) else wrong[name]
            one["unknown"] = "text"
            if ":" not in str(one):  # keys of somebody's own component are not known
                assert not is_valid(wrong), f"{path.name}: [{name}]"


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("run", {"chains": {"seed": 1, "count": "many"}}),
        ("run", {"run": {}}),
        ("run", {"update": []}),
        ("run", {"theory": {"action": "phi4", "lattice": [4], "m2": 1.0}}),
        ("run", {"update": [{"kernel": "hcm"}]}),
        ("train", {"training": {"steps": 1, "batch": 2, "gradient": "pth"}}),
        ("train", {"exchange": {"to": {"m2": 1.0}}}),
        ("free-energy", {"training": {"steps": 1, "batch": 1, "seed": 3}}),
    ],
)
def test_what_does_not_fit_is_found(kind, change, validators):
    path = next(
        one for one in EXAMPLES if kind_of(tomllib.loads(one.read_text(encoding="utf-8"))) == kind
    )
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    assert validators[kind].is_valid(tables)
    assert not validators[kind].is_valid({**tables, **change})
