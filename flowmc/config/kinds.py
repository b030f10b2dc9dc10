"""What configurations there are, and the tables of each: where their keys are declared.

A table's keys are the keyword-only parameters of the classes that are named here, of the component
that one of these keys names, and couplings of the theory.  Everything that must know them takes
them from here: the readers, the search for misspelt keys without torch (:mod:`flowmc.config.keys`),
the JSON schemas and the reference of the documents (:mod:`flowmc.config.schema`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flowmc.registry import ConfigError, nearest

__all__ = ["CASES", "KINDS", "Table", "check_tables", "table_of"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a configuration.

    Attributes:
        name: as written, ``[name]`` or ``[[name]]``.
        declared: classes whose keyword-only parameters are its keys, as ``"module:Name"``.
        component: the kind of a component whose keys stand beside, such as "kernels".
        key: that names the component.
        by_default: components that are meant without that key; "" for none.
        couplings: what is said of a coupling of the theory by its name: its value, the values that
            it takes one after the other, or either; None without such keys.
        without: declared keys that are those of another table here.
        several: whether there may be several, written ``[[name]]``.
        alone: whether the only one of these may be written ``[name]``.
        required: whether a configuration without it is refused.
    """

    name: str
    declared: tuple[str, ...] = ()
    component: str | None = None
    key: str | None = None
    by_default: tuple[str, ...] = ()
    couplings: Literal["value", "values", "either"] | None = None
    without: tuple[str, ...] = ()
    several: bool = False
    alone: bool = False
    required: bool = False

    @property
    def header(self) -> str:
        """How the table is written."""
        return f"[[{self.name}]]" if self.several else f"[{self.name}]"


_TABLES = "flowmc.config.tables"
_PARTS = "flowmc.flows.cards.building"
_TRAINING = "flowmc.training.tables"
_CORRELATE = "flowmc.correlate.config"
_FREE_ENERGY = "flowmc.free_energy.config"
_SETTINGS = "flowmc.training.loop:Settings"
_STORED = "flowmc.ensembles.stored:EnsembleTable"


def _theory(*, required: bool = True) -> Table:
    return Table(
        name="theory",
        declared=("flowmc.actions.theory:TheoryTable",),
        component="actions",
        key="action",
        required=required,
    )


def _plain(name: str, declared: str, *, required: bool = False) -> Table:
    return Table(name=name, declared=(declared,), required=required)


def _part(name: str, kind: str, *, required: bool = False) -> Table:
    declared = (f"{_PARTS}:PartTable",)
    return Table(name=name, declared=declared, component=kind, key="name", required=required)


def _update(*, required: bool = False, alone: bool = False) -> Table:
    return Table(
        name="update",
        declared=(f"{_TABLES}:UpdateTable",),
        component="kernels",
        key="kernel",
        several=True,
        alone=alone,
        required=required,
    )


_MEASURE = _plain("measure", f"{_TABLES}:MeasureTable")
_CHAIN = (
    _plain("chains", f"{_TABLES}:Chains"),
    _update(alone=True),
    _plain("run", f"{_TABLES}:RunTable"),
)
_TARGET = Table(
    name="target",
    declared=(f"{_CORRELATE}:TargetTable",),
    couplings="either",
    several=True,
    alone=True,
)
_ANALYSIS = _plain("analysis", f"{_CORRELATE}:AnalysisTable")

KINDS: Mapping[str, tuple[Table, ...]] = {
    "run": (
        _theory(),
        _plain("chains", f"{_TABLES}:Chains", required=True),
        _update(required=True),
        Table(name="ladder", declared=(f"{_TABLES}:LadderTable",), couplings="either"),
        _plain("run", f"{_TABLES}:RunTable", required=True),
        _MEASURE,
        _plain("ensemble", f"{_TABLES}:EnsembleTable"),
        _plain("parallel", f"{_TABLES}:Parallel"),
    ),
    "train": (
        _theory(),
        Table(name="size", declared=(f"{_TRAINING}:SizeTable",), couplings="either", several=True),
        _plain("annealing", f"{_TRAINING}:Annealing"),
        _part("flow", "flows", required=True),
        _part("prior", "priors"),
        _plain("block", f"{_PARTS}:BlockTable"),
        _plain("mixture", f"{_TRAINING}:MixtureTable"),
        _plain("chains", f"{_TRAINING}:TrainingChains"),
        _plain("ensemble", _STORED),
        _plain("exchange", f"{_TRAINING}:ExchangeTable"),
        Table(
            name="training",
            declared=(f"{_TRAINING}:Keys", _SETTINGS),
            component="objectives",
            key="objective",
            by_default=("reverse_kl", "exchange_kl", "local_kl"),
            required=True,
        ),
    ),
    "correlate": (
        _theory(required=False),
        _plain("ensemble", f"{_CORRELATE}:Source"),
        _TARGET,
        _MEASURE,
        Table(
            name="derivative",
            declared=(f"{_CORRELATE}:DerivativeTable",),
            component="derivatives",
            key="method",
            several=True,
            alone=True,
        ),
        _ANALYSIS,
        *_CHAIN,
    ),
    "combine": (
        _theory(required=False),
        Table(
            name="ensemble",
            declared=(f"{_CORRELATE}:Source",),
            couplings="value",
            several=True,
            required=True,
        ),
        _TARGET,
        _MEASURE,
        _ANALYSIS,
        *_CHAIN,
    ),
    "free-energy": (
        _theory(),
        _plain("free_energy", f"{_FREE_ENERGY}:FreeEnergyTable", required=True),
        Table(
            name="flow",
            declared=(f"{_FREE_ENERGY}:FlowTable",),
            component="flows",
            key="name",
            by_default=("",),
        ),
        _part("prior", "priors"),
        Table(name="protocol", declared=(f"{_FREE_ENERGY}:ProtocolTable",), couplings="values"),
        _update(),
        _plain("chains", f"{_FREE_ENERGY}:EquilibriumTable"),
        _plain("ensemble", _STORED),
        # Its seed is that of [free_energy].
        Table(name="training", declared=(_SETTINGS,), without=("seed",)),
    ),
}
"""Tables of each kind of configuration, in the order of the documents."""


CASES: Mapping[str, str] = {
    "production": "a stream of configurations, by HMC",
    "ladder": "parallel tempering in a coupling, or in the boundary conditions",
    "hybrid": "HMC and a trained flow",
    "training": "training of a flow",
}
"""What ``flowmc init`` begins with (:mod:`flowmc.config.cases`), with a few words."""


def table_of(kind: str, name: str) -> Table:
    """Return a table of a kind of configuration by name."""
    return next(one for one in KINDS[kind] if one.name == name)


def check_tables(kind: str, tables: Mapping[str, Any], *, optional: Collection[str] = ()) -> None:
    """Refuse unknown and missing tables, and what is no table.

    Args:
        kind: of configuration.
        tables: all of it.
        optional: names of tables that need not be there, whatever is said of the kind.

    Raises:
        ConfigError: naming the nearest known table.
    """
    known = {one.name: one for one in KINDS[kind]}
    for name, value in tables.items():
        if name not in known:
            raise ConfigError(f"unknown table [{name}]{nearest(name, known)}")
        table = known[name]
        is_one = isinstance(value, Mapping)
        if not (isinstance(value, list) or (is_one and table.alone) if table.several else is_one):
            double = ", in double brackets" if table.several else ""
            raise ConfigError(f"{name} should be a table, written {table.header}{double}")
        for number, one in enumerate(value if table.several and not is_one else (), start=1):
            if not isinstance(one, Mapping):
                raise ConfigError(
                    f"{table.header} {number}: should be a table, written {table.header}"
                )
    for table in known.values():
        if table.required and table.name not in optional and tables.get(table.name, []) == []:
            raise ConfigError(f"missing table {table.header}")
