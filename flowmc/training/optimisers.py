"""The optimisers of a training, and their states as tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowmc.registry import ConfigError

__all__ = ["OptimiserName", "load_state_tensors", "make_optimiser", "state_tensors"]

OptimiserName = Literal["adam", "soap"]

# Of SOAP: how fast the averages behind its bases forget, and the longest axis it is offered.
_BASIS_DECAY = 0.95
_LONGEST_AXIS = 4096


def make_optimiser(
    name: OptimiserName, weights: Sequence[nn.Parameter], rate: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    r"""Return an optimiser of these weights.

    ``"adam"`` divides the mean gradient by the root of its mean square, weight by weight.
    ``"soap"`` (arXiv:2409.11321) does that in the eigenbases of the mean of :math:`G G^T`, one for
    each axis of a weight's gradient G; a step of QR iteration per step of the training keeps them
    up to date, n^3 operations for an axis of n.  Its first step sets them up and leaves the
    weights alone.

    Args:
        name: of the optimiser.
        weights: what is trained.
        rate: learning rate.
        betas: decay rates of the mean and of the mean square.

    Raises:
        ConfigError: if an axis of a weight is too long for a basis of its own.
    """
    if name == "adam":
        return torch.optim.Adam(weights, lr=rate, betas=betas)
    longest = max(size for weight in weights for size in (0, *weight.shape))
    if longest > _LONGEST_AXIS:
        raise ConfigError(
            f'optimiser = "soap" keeps a matrix for every axis of a weight, and one of this flow '
            f'has {longest} entries, more than {_LONGEST_AXIS}: use optimiser = "adam"'
        )
    from pytorch_optimizer import SOAP  # takes a second to import

    optimiser = SOAP(
        weights,
        lr=rate,
        betas=betas,
        shampoo_beta=_BASIS_DECAY,
        weight_decay=0.0,
        precondition_frequency=1,
        precondition_1d=True,
    )
    optimiser.register_step_post_hook(_lay_out_as_read)
    return optimiser


def _lay_out_as_read(optimiser: torch.optim.Optimizer, *_: Any) -> None:
    """Lay the bases out as they come from a file: products may round by layout."""
    for entries in optimiser.state.values():
        entries["Q"] = [basis.contiguous() for basis in entries["Q"]]


def state_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state: ``weight/name``, ``weight/name/axis`` of a list per axis, and ``step``.

    Adam counts the steps of each weight, SOAP those of all.
    """
    state = optimiser.state_dict()
    tensors = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value
            elif isinstance(value, list):
                tensors.update({f"{index}/{name}/{axis}": part for axis, part in enumerate(value)})
    if "step" in state["param_groups"][0]:
        tensors["step"] = torch.tensor(state["param_groups"][0]["step"])
    return tensors


def load_state_tensors(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Continue from :func:`state_tensors`.

    Raises:
        RuntimeError: if the state is that of another kind of optimiser.
    """
    state = optimiser.state_dict()
    (group,) = state["param_groups"]
    of_all = {key: group[key] for key in ("precondition_frequency", "shampoo_beta") if key in group}
    if tensors and ("step" in tensors) != bool(of_all):
        raise RuntimeError("the state of its optimiser is that of another kind")
    entries: dict[int, dict[str, Any]] = {}
    for key, tensor in sorted(tensors.items(), key=_place):
        if key == "step":
            group["step"] = int(tensor)
            continue
        index, name, *axis = key.split("/")
        of_weight = entries.setdefault(int(index), dict(of_all))
        if axis:
            of_weight.setdefault(name, []).append(tensor)
        else:
            of_weight[name] = tensor
    optimiser.load_state_dict({"state": entries, "param_groups": [group]})


def _place(item: tuple[str, Tensor]) -> tuple[str, int]:
    """Sort the axes of a list by number."""
    parts = item[0].split("/")
    return ("/".join(parts[:2]), int(parts[2]) if len(parts) > 2 else 0)
