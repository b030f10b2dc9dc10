"""The prior ``super_resolution`` of a configuration: where its coarse sampler comes from.

``base`` is a flow file, or a table of the sampler's parts.  Cards hold it as a table, beside the
weights of the whole model in the same file, so that a flow file can be read without the others that
went into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from flowmc.actions import Action, FreeScalar
from flowmc.flows.cards.building import build_flow, build_model, build_prior
from flowmc.flows.cards.files import FlowFileError, load_flow
from flowmc.flows.cards.matching import check_lattice
from flowmc.flows.cards.tables import card_action, flat, resolved
from flowmc.flows.models import FlowModel
from flowmc.flows.scalar.super_resolution import SuperResolutionPrior, halved
from flowmc.registry import ConfigError, check_known

__all__ = ["super_resolution"]

_PARTS = ("prior", "flow", "mixture")
# What a card says beside them of a flow file that the weights came from.
_OF_FILES = ("theory", "source", "fingerprint")


def super_resolution(
    action: Action, *, base: str | dict[str, Any], m2: float, coarse_m2: float | None = None
) -> SuperResolutionPrior:
    """Return the prior of a configuration; see :class:`~flowmc.flows.SuperResolutionPrior`.

    Args:
        action: the fine theory; gives the lattice.
        base: the sampler of half the extents: a flow file, "zoo:NAME", or a table with ``prior``
            (again ``{name = "super_resolution", ...}``, for another doubling), and, if any, a
            ``flow`` without weights and a ``mixture``.
        m2, coarse_m2: squared masses of the fine and of the coarse free field.

    Raises:
        ConfigError: for a sampler that does not fit.
    """
    coarse = FreeScalar(halved(action.lattice), m2=4 * m2 if coarse_m2 is None else coarse_m2)
    # Flows draw weights that a file then replaces: the training's own are not to notice.
    with torch.random.fork_rng(devices=[]):
        if isinstance(base, str):
            model, card = _from_file(base, coarse.lattice)
        else:
            model, card = _from_table(base, coarse)
    return SuperResolutionPrior(action, model, m2=m2, coarse_m2=coarse_m2, card=card)


def _from_file(source: str, lattice: tuple[int, ...]) -> tuple[FlowModel, dict[str, Any]]:
    try:
        loaded = load_flow(source, lattice=lattice)
        if loaded.model is None:
            raise FlowFileError("is an exchange flow, but super-resolution starts from a sampler")
        _check_scalar(loaded.action)
    except ConfigError as error:
        raise ConfigError(f"base = {source!r}: {error}") from error
    card = {key: loaded.card[key] for key in ("theory", *_PARTS) if key in loaded.card}
    return loaded.model, {**card, "source": source, "fingerprint": loaded.model.fingerprint()}


def _from_table(table: Mapping[str, Any], coarse: FreeScalar) -> tuple[FlowModel, dict[str, Any]]:
    known = (*_PARTS, *_OF_FILES) if "fingerprint" in table else _PARTS
    check_known(table, known, "base")
    if "prior" not in table:
        raise ConfigError("base: missing key 'prior'")
    # Nothing but its lattice is asked of a theory by priors and flows without weights.
    theory: Action = coarse
    prior_table, flow_table = flat(table["prior"]), flat(table.get("flow", {"name": "identity"}))
    if "theory" in table:
        check_lattice({"flow": flow_table, "theory": table["theory"]}, coarse.lattice)
        own = {**table["theory"], "lattice": list(coarse.lattice)}
        theory = card_action({"theory": own}, "base")
    flow = build_flow(flow_table, theory, "base: flow")
    if "fingerprint" not in table and any(True for _ in flow.parameters()):
        raise ConfigError(
            f"base: the flow {flow_table['name']!r} has weights: train a sampler of the "
            f"{'x'.join(map(str, coarse.lattice))} lattice, and give its flow file as base"
        )
    prior = build_prior(prior_table, theory, "base: prior")
    model = build_model(prior, flow, theory, table.get("mixture"), "base: mixture")
    card = {
        **table,
        "prior": resolved("priors", prior_table),
        "flow": resolved("flows", flow_table),
    }
    card["prior"]["parameters"] |= prior.card_parameters()
    return model, card


def _check_scalar(action: Action) -> None:
    if not action.is_scalar:
        raise ConfigError(f"super-resolution is for real scalar fields, but this is of {action!r}")
