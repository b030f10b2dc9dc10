"""``flowmc pack``: weights that were trained elsewhere, as a flow file with a card."""

from __future__ import annotations

import argparse
import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from flowmc.commands.finishing import finish
from flowmc.config.settings import as_words
from flowmc.config.tables import read_toml
from flowmc.evaluation.density import DensityError
from flowmc.flows.models import FlowModel
from flowmc.messages import say
from flowmc.parallel import Communicator
from flowmc.parallel.devices import check_device
from flowmc.registry import ConfigError
from flowmc.training.plan import TrainingPlan, make_plan

__all__ = ["pack", "run"]

# Read by no one but the plan: a flow that is there is not trained.
_NO_TRAINING = {"steps": 1, "batch": 64}


def run(args: argparse.Namespace) -> int:
    """Run ``flowmc pack``; return the exit status.

    Raises:
        ConfigError: the weights do not fit, or the map of the flow is not that of its density.
        OSError: a file cannot be read or written.
    """
    tables = read_toml(args.config, args.settings)
    weights, digest = _read(Path(args.weights))
    own = {"precision": 64 if _is_double(weights) else 32}
    tables["training"] = {**_NO_TRAINING, **own, **tables.get("training", {})}
    plan = make_plan(tables, Path(args.config).parent)
    words = f"flowmc pack {args.weights} {args.config} --output {args.output}"
    if args.settings:
        words += f" {shlex.join(as_words(args.settings))}"
    try:
        pack(
            weights,
            plan,
            args.output,
            device=check_device(args.device),
            source={"weights": Path(args.weights).name, "weights_sha256": digest},
            command=words,
        )
    except DensityError as error:
        say(str(error), prefix="flowmc pack: ")
        return 1
    return 0


def pack(
    weights: Mapping[str, Tensor],
    plan: TrainingPlan,
    output: str | Path,
    *,
    device: torch.device | str = "cpu",
    source: Mapping[str, Any] | None = None,
    command: str = "",
) -> None:
    """Write a flow file of weights that are there: fitted in, checked, measured.

    Args:
        weights: the ``state_dict()`` of the flow, or of prior and flow (``flow.`` before the
            names of its weights).
        plan: of :func:`~flowmc.training.plan.make_plan`: ``[theory]``, ``[flow]`` and ``[prior]``
            or ``[exchange]``; of ``[training]`` what says how the flow is measured.
        output: the flow file, which may not be there.
        device: where to measure it.
        source: for the card: where the weights are from.
        command: recorded in the card.

    Raises:
        ConfigError: naming the weights that do not fit, or what the flow does wrong.
        DensityError: if the flow has no finite density.
    """
    output = Path(output)
    if output.exists():
        raise ConfigError(f"{output} is there: choose another --output, or move it away")
    made_of = dict(source or {})
    # How long these weights took is not known; a comparison of costs says so by this name.
    name = made_of.get("weights", "weights from elsewhere")
    module = plan.build(device).module
    _load(module, weights)
    finish(
        plan,
        module.to(plan.dtype).to(device).eval(),
        output,
        {"steps": 0, "seconds": 0.0, **made_of, "ancestors": [{"flow": name, "seconds": None}]},
        device=device,
        announce=lambda text: say(text, prefix="flowmc pack: "),
        command=command,
        communicator=Communicator(),
    )


def _load(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put weights into a model, or into its flow, whichever has these names."""
    part = module
    if isinstance(module, FlowModel) and not set(weights) & set(module.state_dict()):
        part = module.flow
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"the weights {name!r} are not finite")
    part.to(torch.float64 if _is_double(weights) else torch.float32)
    try:
        part.load_state_dict(dict(weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t", 1)[-1].split())[:1000]
        raise ConfigError(
            f"the weights do not fit the flow of the configuration: {reason}"
        ) from error


def _is_double(weights: Mapping[str, Tensor]) -> bool:
    return any(one.dtype in (torch.float64, torch.complex128) for one in weights.values())


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return weights and the SHA-256 of their file."""
    data = path.read_bytes()
    try:
        # Copied: tensors of a file lie where its header lets them.
        found = {key: one.clone() for key, one in safetensors.torch.load(data).items()}
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{path} is no safetensors file, and pickles are not read: write the weights with "
            "safetensors.torch.save_file(model.state_dict(), PATH)"
        ) from error
    return found, hashlib.sha256(data).hexdigest()
