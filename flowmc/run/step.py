"""``flowmc step``: one cycle of updates on one file, for production streams driven by a shell.

The file is all the state there is.  Random numbers come from the seed and the number of the
configuration that is written, so a stream of numbered files can be made again and never uses the
same random numbers twice.  Nothing is adapted: step sizes are those of the configuration.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from flowmc.io import StoredField, load_field, number_in_name, write_field
from flowmc.kernels import NonFiniteStateError, State
from flowmc.messages import say
from flowmc.parallel import Communicator
from flowmc.parallel.devices import choose_threads
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.run.assembly import Assembly, assemble
from flowmc.run.checkpoint import settled
from flowmc.run.config import RunConfig, check_format, load_config
from flowmc.run.diagnostics import leaves
from flowmc.run.ensemble import CARRIED, field_metadata
from flowmc.run.rehearsal import kernel_names, measure, observable_shapes
from flowmc.run.start import first_state

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Update one file; return the exit status.

    Raises:
        ConfigError, FormatError, OSError: unusable input, or OUT cannot be written.
        NonFiniteStateError: the field became unusable; nothing is written.
    """
    config = load_config(args.config, for_step=True)
    _check(config)
    choose_threads(Communicator())
    assembly = assemble(config)
    stored = load_field(args.source, config.action, dtype=assembly.dtype, device=assembly.device)
    number = _number(args, stored)
    form, precision = stored.format, stored.precision
    if config.ensemble is not None:
        form, precision = config.ensemble.format, config.ensemble.precision or precision
    present = config.chains.precision
    check_format(form, config.action, args.destination, present=present, precision=precision)

    state = first_state(assembly, {0: stored.field}, 0)
    observable_shapes(config.observables, assembly.actions, state)
    rng = stream(config.chains.seed, 0, f"step {number}", assembly.device)
    try:
        state, info = assembly.kernel.step(state, rng)
    except NonFiniteStateError as error:
        raise NonFiniteStateError(f"{args.source}: {error}; nothing was written") from error
    state = settled(state)
    assert isinstance(state, State)
    if not bool(torch.isfinite(state.field).all()):
        raise NonFiniteStateError(
            f"{args.source}: the updated field is not finite; nothing was written"
        )
    metadata = {key: stored.metadata[key] for key in CARRIED if key in stored.metadata}
    metadata |= field_metadata(config.action, config.chains.seed)
    metadata |= {"SEQUENCE_NUMBER": str(number), "FLOWMC_SOURCE": Path(args.source).name}
    write_field(
        args.destination,
        state.field,
        config.action,
        format=form,
        precision=precision,
        metadata=metadata,
    )
    _tell(args, config, assembly, stored, number, state, info)
    return 0


def _check(config: RunConfig) -> None:
    if config.ladder is not None:
        raise ConfigError(
            "flowmc step keeps its state in one file, a ladder needs one per replica: use flowmc "
            "run, which checkpoints all replicas, or remove [ladder] and the exchange"
        )
    if config.chains.count != 1:
        raise ConfigError(
            f"[chains]: count = {config.chains.count}: flowmc step updates one file, set count = 1"
        )


def _number(args: argparse.Namespace, stored: StoredField) -> int:
    if args.number is not None:
        if args.number < 0:
            raise ConfigError(f"--number {args.number}: should be 0 or more")
        return args.number
    in_name = number_in_name(args.destination)
    if in_name is not None:
        return in_name
    if stored.number is None:
        raise ConfigError(
            f"neither {args.source} nor {args.destination} has a configuration number, which "
            "selects the random numbers: end OUT with one, as in lat.1001, or give --number"
        )
    return stored.number + 1


def _tell(
    args: argparse.Namespace,
    config: RunConfig,
    assembly: Assembly,
    stored: StoredField,
    number: int,
    state: State,
    info: Any,
) -> None:
    for note in stored.notes:
        say(note)
    acceptance = {
        name: float(leaf.is_accepted.double().mean())
        for name, leaf in leaves(info, kernel_names(assembly))
    }
    observables = {
        entry.label: measure(entry, assembly.actions, state)[0, 0].tolist()
        for entry in config.observables
    }
    if args.json:
        report = {
            "source": args.source,
            "destination": args.destination,
            "number": number,
            "acceptance": acceptance,
            "observables": observables,
        }
        print(json.dumps(report, indent=2))
        return
    shares = [f"{name} accepted {value:.0%}" for name, value in acceptance.items()]
    values = [f"{k} = {v:.12g}" for k, v in observables.items() if isinstance(v, float)]
    print(f"{args.source} -> {args.destination}: " + ", ".join(shares + values))
