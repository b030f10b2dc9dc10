"""Configurations to begin with, for ``flowmc init``: a theory in, tables with remarks out."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowmc.actions.base import Action
from flowmc.config.kinds import KINDS
from flowmc.flows.cards.choosing import Proposals
from flowmc.groups import U1, Real
from flowmc.registry import ConfigError, written

__all__ = ["DEFAULT_THEORIES", "Draft", "Start", "draft"]

DEFAULT_THEORIES: Mapping[str, Mapping[str, Any]] = {
    "production": {"action": "wilson", "group": "SU(3)", "lattice": [8, 8, 8, 8], "beta": 6.0},
    "ladder": {
        "action": "wilson_defect",
        "group": "U(1)",
        "lattice": [16, 16],
        "beta": 7.0,
        "defect": 1.0,
        "defect_axis": 1,
        "defect_extents": [4],
    },
    "hybrid": written({"action": "phi4", "lattice": [8, 8], "m2": -4.0, "lam": 8.0}),
    "training": written({"action": "phi4", "lattice": [8, 8], "m2": -4.0, "lam": 8.0}),
}
"""The theory of every case without a file."""


@dataclass(frozen=True)
class Start:
    """The file that chains start from.

    Attributes:
        path: as the configuration names it.
        format: in which configurations are saved.
        precision: 32 or 64.
    """

    path: str
    format: str
    precision: int


@dataclass
class Draft:
    """A configuration with what there is to say of it.

    Attributes:
        title: what it does, lines without the mark of a comment.
        tables: as of a TOML file.
        remarks: by the names of tables and keys, see :func:`flowmc.config.toml_text.toml_text`.
        command: "run" or "train", which takes it.
    """

    title: list[str]
    tables: dict[str, Any]
    remarks: dict[str, str]
    command: str = "run"


def draft(
    case: str,
    theory: Mapping[str, Any],
    action: Action,
    start: Start | None = None,
    flows: Proposals | None = None,
) -> Draft:
    """Return the configuration of a case.

    Args:
        case: a key of :data:`~flowmc.config.kinds.CASES`.
        theory: the ``[theory]`` table.
        action: of it.
        start: where its chains start; None for random fields.
        flows: of the case "hybrid".

    Raises:
        ConfigError: there is no such configuration of this theory.
    """
    if case == "training":
        found = _training(theory, action)
    else:
        found = _chain(theory, action, start)
        if case == "production":
            _production(found, action, start)
        elif case == "ladder":
            _ladder(found, action)
        else:
            _hybrid(found, flows or Proposals())
    order = [table.name for table in KINDS[found.command]]
    found.tables = dict(sorted(found.tables.items(), key=lambda one: order.index(one[0])))
    return found


def _chain(theory: Mapping[str, Any], action: Action, start: Start | None) -> Draft:
    """Return HMC of a theory, with all that every chain needs."""
    chains: dict[str, Any] = {"seed": _seed()}
    if start is not None:
        chains["file"] = start.path
    else:
        chains |= {"count": 4 if action.is_gauge else 32, "start": "hot"}
    hmc: dict[str, Any] = {"kernel": "hmc", "trajectory": 1.0, "steps": _steps(action)}
    if start is None:
        hmc["target_acceptance"] = 0.8
    tables: dict[str, Any] = {
        "theory": dict(theory),
        "chains": chains,
        "update": [hmc],
        "run": {"thermalization": 0 if start is not None else 100, "updates": 1000},
        "measure": {"observables": _observables(action)},
    }
    axes = "x, y, z, t" if action.dimensions == 4 else "x first, time last"
    remarks = {
        "theory.lattice": axes,
        "chains.seed": "another one for every run: it selects all random numbers",
        "chains.file": "any format; its path from this file's directory",
        "chains.count": "chains side by side; more of them cost little on a small lattice",
        "chains.start": "hot, cold, or file = PATH",
        "update[1]": "all of these, in this order, are one update of the chain",
        "update[1].trajectory": "length in molecular-dynamics time; momenta have unit width",
        "update[1].steps": "of the integrator (minimum norm, second order): more, more acceptance",
        "update[1].target_acceptance": "adapts the step size in the thermalization, never after it",
        "run.thermalization": "updates that are not measured"
        if start is None
        else "the file is from the chain",
        "run.updates": "more of them may be asked for later: flowmc run --resume goes on",
        "measure.observables": "also your own, as module:function",
    }
    return Draft([], tables, remarks)


def _production(found: Draft, action: Action, start: Start | None) -> None:
    found.title = [
        f"A stream of configurations of {_described(action)}, by HMC.",
        "",
        "    flowmc run CONFIG",
        "",
        "or, in a shell script that has its own loop over files, one update of one of them:",
        "",
        "    flowmc step lat.1000 lat.1001 --config CONFIG",
    ]
    # One file is one chain.
    found.tables["chains"].pop("count", None)
    found.tables["run"]["save_every"] = 10
    form = start.format if start is not None else _usual_format(action)
    found.tables["ensemble"] = {
        "format": form,
        "precision": 64 if start is None else start.precision,
    }
    found.remarks |= {
        "run.save_every": "updates between saved configurations",
        "ensemble.format": "flowmc convert makes others of it",
    }


def _ladder(found: Draft, action: Action) -> None:
    count, tables = 5, found.tables
    tables["run"] |= {"thermalization": 400, "updates": 2000}
    if "defect" in action.parameters:
        coupling, values = "defect", [1 - i / (count - 1) for i in range(count)]
        if action.parameters["defect"] != 1:
            raise ConfigError(
                "[theory]: a ladder in the defect begins at the theory without one: defect = 1.0"
            )
    else:
        coupling, values = _rungs(action, count)
    tables["ladder"] = {coupling: values, "flows": ["identity"] * (count - 1), "tune": True}
    tables["update"].append({"kernel": "exchange"})
    found.title = [
        f"Parallel tempering in {coupling} of {_described(action)}.",
        "Neighbouring replicas are exchanged: what the last one forgets quickly reaches the first.",
        "",
        "    flowmc run CONFIG",
        "",
        "The report shows the swap rates: with rates below a few per cent add replicas.",
    ]
    found.remarks |= {
        f"ladder.{coupling}": "one replica for each; the first is the theory above",
        "ladder.flows": "identity: plain exchange; or a trained flow for each pair",
        "ladder.tune": "moves the values between the ends to equal swap rates, while thermalizing",
        "run.thermalization": "the ladder is tuned in the first half of it",
    }


def _hybrid(found: Draft, flows: Proposals) -> None:
    tables = found.tables
    found.title = [
        "HMC and proposals of a flow in turn; the chain is exact, however good the flow is.",
        "",
        "    flowmc run CONFIG",
        "",
        "Compare: the same without the second [[update]], then flowmc report DIR DIR.",
    ]
    if flows.sampler:
        tables["update"].append({"kernel": "independence", "flow": flows.sampler, "proposals": 4})
        found.remarks |= {
            "update[2].flow": "of the zoo, or trained: flowmc init training",
            "update[2].proposals": "drawn in one batch, then accepted or not, one after the other",
        }
        return
    tables["ladder"] = {**flows.ladder, "flows": list(flows.exchange)}
    tables["update"].append({"kernel": "exchange"})
    tables["run"]["thermalization"] = 100
    found.remarks |= {
        "ladder": "replica 0 is the theory above",
        "ladder.flows": "each carries a replica to its neighbour",
        "update[2]": "exchanges neighbours through their flow",
        "run.thermalization": "of the other replicas, which start from the same fields",
    }


def _training(theory: Mapping[str, Any], action: Action) -> Draft:
    tables: dict[str, Any] = {"theory": dict(theory)}
    remarks = {
        "training.steps": "a few hundred to see it learn, thousands for a good flow",
        "training.batch": "fields of each step",
        "training.evaluate_samples": "of the measurement that goes into the card of the flow",
    }
    training: dict[str, Any] = {"steps": 1000, "batch": 64, "learning_rate": 2e-3, "seed": _seed()}
    what = "draws fields of"
    if isinstance(action.group, Real):
        tables["prior"] = {"name": "gaussian"}
        tables["flow"] = {"name": "affine_coupling", "layers": 16, "hidden": [8, 8]}
        training["gradient"] = "path"
        remarks["flow.layers"] = "of checkerboard masks, in turn even and odd"
        remarks["training.gradient"] = "has no noise where the flow is exact"
    elif isinstance(action.group, U1) and action.dimensions == 2:
        beta = action.parameters["beta"]
        tables["prior"] = {"name": "haar"}
        tables["flow"] = {"name": "plaquette", "bins": 16, "initial_transport": [0.0, beta]}
        remarks["prior.name"] = "uniform links"
    elif "beta" in action.parameters:
        what = "carries a coupling nearby to"
        _exchange_training(tables, training, remarks, action)
    else:
        raise ConfigError(f"there is no flow for {_described(action)} to begin with")
    tables["training"] = training
    if "evaluate_samples" not in training:
        training["evaluate_samples"] = 4096
    title = [
        f"Training of a flow that {what} {_described(action)}.",
        "",
        "    flowmc train CONFIG --output FLOW.safetensors",
        "    flowmc evaluate FLOW.safetensors",
        "    flowmc init hybrid --flow FLOW.safetensors",
    ]
    return Draft(title, tables, remarks, "train")


def _exchange_training(
    tables: dict[str, Any], training: dict[str, Any], remarks: dict[str, str], action: Action
) -> None:
    """Fill in a flow of masked links from a coupling nearby, whose weights serve all lattices."""
    beta = action.parameters["beta"]
    lattice = [4 if action.dimensions > 2 else 8] * action.dimensions
    volume = action.on_lattice(lattice).volume
    other = _rounded(beta - 1.5 * _spacing(action, volume))
    tables["theory"] = {**tables["theory"], "lattice": lattice}
    # SU(3) in four dimensions, and nearly so elsewhere.
    tables["flow"] = {
        "name": "residual",
        "loops": ["plaquette"],
        "initial_coefficient": _rounded((beta - other) / 64),
    }
    tables["exchange"] = {"from": {"beta": other}, "to": {"beta": beta}, "chains": 32}
    training |= {"steps": 60, "batch": 16, "learning_rate": 4e-4, "evaluate_samples": 512}
    remarks |= {
        "theory.lattice": "the weights serve any lattice with even extents",
        "exchange.from": "the flow maps fields of this coupling ...",
        "exchange.to": "... to fields of this one",
        "exchange.chains": "of HMC, at both ends",
        "training.steps": "few: the flow has a single weight",
    }


def _steps(action: Action) -> int:
    """Return integrator steps for trajectories of length 1: their error grows as V^(1/4)."""
    return max(8, round(8 * (action.volume / 512) ** 0.25))


def _rungs(action: Action, count: int) -> tuple[str, list[float]]:
    """Return a coupling and values whose neighbours swap at a rate of some 30 per cent."""
    if not action.parameters:
        raise ConfigError(f"{_described(action)} has no coupling for a ladder")
    coupling = next(iter(action.parameters))
    value = action.parameters[coupling]
    # Towards the disorder, where chains are fast.
    step = -_spacing(action, action.volume)
    if coupling == "m2":
        step = -step
    return coupling, [_rounded(value + i * step) if i else value for i in range(count)]


def _spacing(action: Action, volume: int) -> float:
    r"""Return the change of the first coupling that moves the action by one of its widths.

    In gauge theories :math:`\mathrm{Var}(S/\beta) \approx (d - 1) V \dim G / 2\beta^2` for
    large beta; otherwise as if sites had a variance of one.
    """
    beta = action.parameters.get("beta")
    if action.is_gauge and beta:
        freedoms = (action.dimensions - 1) * volume * action.group.algebra_dimension
        return float(abs(beta) * math.sqrt(2 / freedoms))
    return 1 / math.sqrt(volume)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _observables(action: Action) -> list[str]:
    if action.is_gauge:
        charge = ["topological_charge"] if action.dimensions == 2 else ["polyakov_loop"]
        is_wound = action.dimensions != 2 or isinstance(action.group, U1)
        return ["plaquette", *(charge if is_wound else [])]
    if action.is_scalar and action.dimensions > 1:
        return ["action", "abs_magnetization", "phi2", "susceptibility"]
    return ["action"]


def _usual_format(action: Action) -> str:
    is_common = action.is_gauge and action.dimensions == 4 and not isinstance(action.group, U1)
    return "nersc" if is_common else "hdf5"


def _described(action: Action) -> str:
    size = "x".join(map(str, action.lattice))
    group = f" for {action.group.name}" if action.is_gauge else ""
    couplings = ", ".join(f"{key} = {value:g}" for key, value in action.parameters.items())
    return f"the {action.title or action.name}{group} on {size}, {couplings}".rstrip(", ")


def _seed() -> int:
    return secrets.randbelow(2**31)
