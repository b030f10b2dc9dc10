"""``flowmc step``: one cycle of updates on one file, for production streams driven by a shell.

The file is all the state there is.  Random numbers come from the seed and the number of the
configuration that is written, so a stream of numbered files can be made again and never uses the
same random numbers twice: the number must be above that of the file which was read.  Nothing is
adapted: step sizes are those of the configuration.  Ladders: :mod:`flowmc.commands.step_ladder`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowmc.actions.base import Action
from flowmc.chains.assembly import Assembly, assemble
from flowmc.chains.config import RunConfig, load_config
from flowmc.chains.measuring import observable_shapes
from flowmc.chains.stepper import Stepped, step, summary_of
from flowmc.commands.step_ladder import (
    commit,
    finish_commits,
    paths_of,
    side_file,
    step_ladder,
    told,
)
from flowmc.ensembles.claims import check_theory, seeds_of
from flowmc.ensembles.naming import CARRIED, field_metadata
from flowmc.io import (
    StoredField,
    check_format,
    load_field,
    number_in_name,
    with_signs,
    write_field,
)
from flowmc.kernels import NonFiniteStateError, UpdateFailedError
from flowmc.kernels.base import kernels_in
from flowmc.messages import say
from flowmc.parallel import Communicator
from flowmc.parallel.devices import choose_threads
from flowmc.registry import ConfigError

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Update one file; return the exit status.

    Raises:
        ConfigError, FormatError, OSError: unusable input, or OUT cannot be written.
        NonFiniteStateError: the field became unusable; nothing is written.
    """
    config = load_config(args.config, for_step=True, settings=args.settings)
    _check(config)
    choose_threads(Communicator())
    assembly = assemble(config)
    if config.ladder is not None:
        return _run_ladder(args, config, assembly)
    stored = load_field(args.source, config.action, dtype=assembly.dtype, device=assembly.device)
    remarks = [
        *stored.notes,
        *check_theory(args.source, stored.metadata, config.action, force=args.force),
    ]
    number = _number(args, stored, config.chains.seed)
    form, precision = stored.format, stored.precision
    if config.ensemble is not None:
        form, precision = config.ensemble.format, config.ensemble.precision or precision
    present = config.chains.precision
    check_format(form, config.action, args.destination, present=present, precision=precision)

    if "{replica}" in args.source + args.destination or args.ladder:
        raise ConfigError("{replica} and --ladder are for ladders, but there is no [ladder]")
    scratch = _scratch(args.destination, assembly)
    try:
        stepped = step(stored.field, assembly, seed=config.chains.seed, number=number)
    except (NonFiniteStateError, UpdateFailedError) as error:
        raise type(error)(f"{args.source}: {error}; nothing was written") from error
    shutil.rmtree(scratch, ignore_errors=True)
    # What cannot be measured shows before anything is written.
    observable_shapes(config.observables, assembly.actions, stepped.state)
    metadata = _metadata(config.action, args.source, stored, config.chains.seed, number)
    write_field(
        args.destination,
        with_signs(stepped.field, stored.signs),
        config.action,
        format=form,
        precision=precision,
        metadata=metadata,
    )
    if stored.signs:
        remarks.append(
            f"{args.destination}: the fermions' antiperiodic sign is back on these links"
        )
    for text in remarks:
        say(text)
    _tell(args, config, assembly, number, stepped)
    return 0


def _scratch(destination: str, assembly: Assembly) -> Path:
    """Let kernels keep files beside OUT, where programs on other nodes find them; return where."""
    path = Path(destination).absolute()
    folder = path.with_name(f".{path.name}.external")
    for kernel in kernels_in(assembly.kernel):
        kernel.scratch = folder
    return folder


def _run_ladder(args: argparse.Namespace, config: RunConfig, assembly: Assembly) -> int:
    """Update one file per replica; return the exit status."""
    replicas, seed = len(assembly.actions), config.chains.seed
    sources, destinations = (paths_of(p, replicas) for p in (args.source, args.destination))
    for paths in (sources, destinations):
        finish_commits(paths)
    files: list[StoredField] = []
    remarks: list[str] = []
    numbers: list[int] = []
    for source, destination, action in zip(sources, destinations, config.actions, strict=True):
        stored = load_field(source, action, dtype=assembly.dtype, device=assembly.device)
        remarks += stored.notes
        remarks += check_theory(source, stored.metadata, action, force=args.force)
        own = argparse.Namespace(source=source, destination=destination, number=args.number)
        numbers.append(_number(own, stored, seed))
        files.append(stored)
    if len(set(numbers)) > 1:
        raise ConfigError(
            f"the files of the replicas have different numbers, {min(numbers)} to {max(numbers)}: "
            "give all the same, or say which with --number"
        )
    number, first = numbers[0], files[0]
    form, precision = first.format, first.precision
    if config.ensemble is not None:
        form, precision = config.ensemble.format, config.ensemble.precision or precision
    present = config.chains.precision
    check_format(form, config.action, args.destination, present=present, precision=precision)
    side = Path(args.ladder) if args.ladder else side_file(sources)
    if args.ladder and not side.exists():
        raise ConfigError(f"--ladder {side}: there is no such file")
    scratch = _scratch(destinations[0], assembly)
    try:
        done = step_ladder(config, assembly, [one.field for one in files], side, number)
    except (NonFiniteStateError, UpdateFailedError) as error:
        raise type(error)(f"{args.source}: {error}; nothing was written") from error
    shutil.rmtree(scratch, ignore_errors=True)
    observable_shapes(config.observables, assembly.actions, done.state)
    commit(
        config,
        done,
        destinations,
        number,
        format=form,
        precision=precision,
        metadata=[
            _metadata(config.actions[r], sources[r], files[r], seed, number)
            for r in range(replicas)
        ],
        signs=[one.signs for one in files],
    )
    if done.began and number > 1:
        remarks.append(
            f"{args.source} has no file {side} of walkers: they are numbered anew (--ladder names "
            "one elsewhere)"
        )
    for text in remarks:
        say(text)
    told(args, config, assembly, number, done)
    return 0


def _metadata(
    action: Action, source: str, stored: StoredField, seed: int, number: int
) -> dict[str, str]:
    """Return what is written beside a field."""
    metadata = {key: stored.metadata[key] for key in CARRIED if key in stored.metadata}
    metadata |= field_metadata(action, seed, seeds_of(source, stored.metadata))
    return metadata | {"SEQUENCE_NUMBER": str(number), "FLOWMC_SOURCE": Path(source).name}


def _check(config: RunConfig) -> None:
    if config.chains.count != 1:
        raise ConfigError(
            f"[chains]: count = {config.chains.count}: flowmc step updates one file, set count = 1"
        )


def _number(args: argparse.Namespace, stored: StoredField, seed: int) -> int:
    """Return the number of the configuration that is written: never one of an earlier step."""
    if args.number is not None:
        if args.number < 0:
            raise ConfigError(f"--number {args.number}: should be 0 or more")
        is_own = seed in seeds_of(args.source, stored.metadata)
        if is_own and stored.number is not None and args.number <= stored.number:
            raise ConfigError(
                f"--number {args.number}: {args.source} is number {stored.number} of the same seed "
                f"{seed}, and the random numbers of {args.number} may have made it: give a number "
                "above, or another seed in [chains]"
            )
        return args.number
    in_name = number_in_name(args.destination)
    if in_name is None:
        if stored.number is None:
            raise ConfigError(
                f"neither {args.source} nor {args.destination} has a configuration number, which "
                "selects the random numbers: end OUT with one, as in lat.1001, or give --number"
            )
        return stored.number + 1
    if stored.number is None and not stored.metadata:
        raise ConfigError(
            f"{args.source} does not say which configuration it is, so that number {in_name}, at "
            f"the end of {args.destination}, may have been used for it: the number selects the "
            f"random numbers, which must be new; say so with --number {in_name}"
        )
    if stored.number is not None and in_name <= stored.number:
        raise ConfigError(
            f"{args.destination} ends with the number {in_name}, which is not above "
            f"{stored.number}, that of {args.source}: it selects the random numbers, and a step "
            "with those of an earlier one is biased; end OUT with a greater number, or give "
            f"--number {stored.number + 1}"
        )
    return in_name


def _tell(
    args: argparse.Namespace,
    config: RunConfig,
    assembly: Assembly,
    number: int,
    stepped: Stepped,
) -> None:
    summary = summary_of(config, assembly, stepped)
    if args.json:
        report = {
            "source": args.source,
            "destination": args.destination,
            "number": number,
            **summary,
        }
        print(json.dumps(report, indent=2))
        return
    parts = [_in_words(name, values) for name, values in summary["kernels"].items()]
    parts += [f"S = {summary['action']:.12g}"] if summary["action"] is not None else []
    parts += [f"{k} = {v:.12g}" for k, v in summary["observables"].items() if isinstance(v, float)]
    print(f"{args.source} -> {args.destination}: " + ", ".join(parts))


def _in_words(name: str, values: Mapping[str, Any]) -> str:
    text = f"{name} accepted {values['acceptance']:.0%} in {values['seconds']:.3g} s"
    for key, symbol in (("energy_error", "dH"), ("log_weight", "ln w")):
        numbers = ["not finite" if one is None else f"{one:.3g}" for one in values.get(key, ())]
        if numbers:
            text += f", {symbol} = {' '.join(numbers)}"
    return text
