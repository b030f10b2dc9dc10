"""How a run begins: a new directory, or the checkpoint of an earlier process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flowmc.chains.assembly import Assembly, assemble
from flowmc.chains.config import RunConfig
from flowmc.chains.diagnostics import Diagnostics, leaves
from flowmc.chains.ladder_tuning import LadderTuner, check_tunable
from flowmc.chains.measuring import observable_shapes
from flowmc.chains.runner import Runner
from flowmc.chains.start import (
    StartFiles,
    initial_states,
    one_chain,
    purpose_of,
    read_start_files,
)
from flowmc.chains.storage.checkpoint import (
    Checkpoint,
    Head,
    check_state,
    read_checkpoint,
    read_head,
    settled,
    write_checkpoint,
)
from flowmc.chains.storage.columns import attributes_of, couplings_of, layout_of, rows_of
from flowmc.chains.storage.configurations import origin_of
from flowmc.chains.storage.declarations import (
    check_declarations,
    declarations_in,
    declarations_of,
)
from flowmc.chains.storage.directory import (
    RunDirectory,
    environment,
    flows_entry,
    identity_of,
)
from flowmc.chains.storage.measurements import MeasurementFile, MeasurementLayout, check_rows
from flowmc.chains.storage.seeds import SeedsWriter
from flowmc.config.tables import SEEDS
from flowmc.jobs.own_files import opened
from flowmc.kernels import Info, LadderState, State
from flowmc.kernels.base import apply, kernels_in
from flowmc.parallel import Communicator
from flowmc.parallel.devices import choose_threads
from flowmc.parallel.distribution import Distribution
from flowmc.random import stream
from flowmc.registry import ConfigError

__all__ = ["distribute", "open_run"]


def open_run(
    config: RunConfig,
    directory: RunDirectory,
    communicator: Communicator,
    *,
    resume: bool,
    force: bool = False,
) -> Runner:
    """Start or resume the run of a directory; collective.

    With ``resume`` a directory without a checkpoint is started, so that one command line serves a
    job that is submitted again and again.  With ``force`` chains start from files whatever theory
    these name.

    Raises:
        ConfigError: the directory holds a run and ``resume`` is not set, is of another
            configuration or flow, or cannot be resumed; or the input is unusable.
        ValueError, OSError: the directory is damaged.
        CollectiveError: the same, on several ranks.
    """

    def look() -> bool:
        # First the lock: what is there may only be judged while nobody else writes it.
        directory.claim()
        if not directory.holds_a_run:
            return False
        if not resume:
            raise ConfigError(
                f"{directory.path} already holds a run: add --resume to continue it, or choose "
                "another --output"
            )
        if not directory.checkpoint.exists():
            directory.check_blank(config)
            return False
        directory.check_resumable(config)
        return True

    resuming = communicator.from_root(look)
    choose_threads(communicator)
    assembly = communicator.together(lambda: assemble(config, communicator))
    if resuming:
        runner = _resume(config, assembly, directory, communicator)
    else:
        runner = _start(config, assembly, directory, communicator, force)
    if communicator.rank == 0 and not directory.lock_works:
        runner.warn(
            f"the file system of {directory.path} has no locks, so nothing keeps a second flowmc "
            "out of it: start one at a time"
        )
    return runner


def _start(
    config: RunConfig,
    assembly: Assembly,
    directory: RunDirectory,
    communicator: Communicator,
    force: bool,
) -> Runner:
    """Prepare a new run and write its checkpoint at update 0; collective.

    Raises:
        ConfigError, FormatError, OSError: unusable input; the directory is then not made.
        CollectiveError: the same, on several ranks.
    """
    if config.ladder is not None and config.ladder.tune:
        check_tunable(config, assembly)
    distribution = distribute(config, assembly, communicator)
    own = distribution.blocks_of(communicator.rank)
    seed = config.chains.seed

    def prepare() -> tuple[StartFiles, dict[int, State | LadderState]]:
        chains = {chain for block in own for chain in range(*config.chains.blocks[block])}
        if communicator.rank == 0:
            chains.add(0)
        files = read_start_files(config, assembly, sorted(chains), force=force)
        states = initial_states(config, assembly, files, own)
        return files, {block: settled(state) for block, state in states.items()}

    files, states = communicator.together(prepare)
    assembly = dataclasses.replace(assembly, remarks=(*assembly.remarks, *files.remarks))

    def try_out() -> dict[str, tuple[int, ...]]:
        one = one_chain(config, assembly, files)
        shapes = observable_shapes(config.observables, assembly.actions, one)
        _try_kernels(assembly, one, seed)
        return shapes

    shapes = communicator.from_root(try_out)
    layout = layout_of(config, assembly, shapes)
    origins = {
        chain: origin_of(config, files, chain)
        for block, replicas in own.items()
        if 0 in replicas
        for chain in range(*config.chains.blocks[block])
    }
    notes = {path: stored.notes for path, stored in files.stored.items()}
    gathered = communicator.gather((origins, files.digests, notes))

    def establish() -> None:
        assert gathered is not None
        _establish(config, assembly, directory, layout, gathered)

    communicator.from_root(establish)
    checkpoint = _at_update_zero(config, assembly, states, own)
    write_checkpoint(directory.checkpoint, checkpoint, communicator)
    runner = Runner(
        config,
        assembly,
        directory,
        communicator,
        distribution,
        checkpoint,
        layout,
        origins,
        resumed=False,
    )
    if runner.tuner is not None:
        # It has built the kernels again.
        communicator.together(runner.init_kernels)
    if gathered is not None:
        for path, sentences in _merged([notes for _, _, notes in gathered]).items():
            for text in sentences:
                runner.journal.write("warning", 0, file=path, text=text)
    return runner


def _establish(
    config: RunConfig,
    assembly: Assembly,
    directory: RunDirectory,
    layout: MeasurementLayout,
    gathered: Sequence[tuple[Mapping[int, Any], Mapping[str, str], Mapping[str, Any]]],
) -> None:
    """Write the files of a new run but the checkpoint.

    Args:
        config, assembly, directory: of the run.
        layout: of the measurement file.
        gathered: from every rank the origins of its chains, digests of start files, and notes.
    """
    origins = _merged([own for own, _, _ in gathered])
    content = {
        "seed": config.chains.seed,
        "ranks": len(gathered),
        "start_files": _merged([digests for _, digests, _ in gathered]),
        "flows": flows_entry(assembly.fingerprints, assembly.cards),
        "origins": [origins[chain] for chain in sorted(origins)],
    }
    directory.write_provenance(config.resolved, assembly.device, content)
    directory.write_config(config.resolved)
    MeasurementFile.create(directory.measurements, layout).close()


def _at_update_zero(
    config: RunConfig,
    assembly: Assembly,
    states: Mapping[int, State | LadderState],
    own: Mapping[int, Sequence[int]],
) -> Checkpoint:
    """Return where a new run stands.

    Args:
        config, assembly: of the run.
        states: by block.
        own: the replicas of every block that live on this rank.
    """
    seed = config.chains.seed
    streams = {
        (block, r): stream(seed, block, purpose_of("update", r), assembly.device).get_state()
        for block, replicas in own.items()
        for r in replicas
    }
    pending = Diagnostics(assembly.reports(), config.chains.count).state()
    head = Head(0, assembly.kernel.tuning(), seed, identity_of(config.resolved), 0)
    return Checkpoint(head, states, streams, pending)


def _merged(parts: Sequence[Mapping[Any, Any]]) -> dict[Any, Any]:
    """Return the entries of all ranks."""
    return {key: value for part in parts for key, value in part.items()}


def _resume(
    config: RunConfig,
    assembly: Assembly,
    directory: RunDirectory,
    communicator: Communicator,
) -> Runner:
    """Continue from the checkpoint, with more rows if the run was extended; collective.

    Raises:
        ConfigError: the configuration or a flow is not that of the run.
        ValueError, OSError: the directory is damaged.
        CollectiveError: one of these, on several ranks.
    """

    def look() -> tuple[Head, dict[str, Any]]:
        head = read_head(directory.checkpoint)
        _check_same_run(config, directory, head)
        directory.check_flows(assembly.fingerprints)
        rows = check_rows(directory.measurements, head.update, head.rows)
        _check_columns(config, assembly, directory.measurements)
        provenance = directory.read_provenance()
        origins = provenance.get("origins")
        if not isinstance(origins, list) or len(origins) != config.chains.count:
            raise ConfigError(
                f"{directory.provenance} does not say where all chains come from: restore it from "
                "a copy"
            )
        if config.ensemble is not None and config.ensemble.format == SEEDS:
            writer = SeedsWriter(directory, config, assembly, dict(enumerate(origins)))
            writer.restore(head.update - config.run.thermalization)
        return dataclasses.replace(head, rows=rows), provenance

    def establish() -> MeasurementLayout:
        columns, attributes = MeasurementFile.columns_in(directory.measurements)
        layout = MeasurementLayout(
            rows_of(config),
            columns,
            attributes_of(config, assembly),
            attributes,
            couplings_of(assembly),
            declarations_of(assembly.reports(), config.observables),
        )
        if MeasurementFile.rows_in(directory.measurements) != dict(layout.rows):
            MeasurementFile.extend(directory.measurements, layout).close()
        directory.write_config(config.resolved)
        return layout

    head, provenance = communicator.from_root(look)
    distribution = distribute(config, assembly, communicator)
    own = distribution.blocks_of(communicator.rank)
    checkpoint = communicator.together(
        lambda: read_checkpoint(directory.checkpoint, assembly.device, own, len(assembly.actions))
    )
    communicator.together(lambda: _check_states(config, assembly, directory.checkpoint, checkpoint))
    # Only now that all of it is sound is anything written.
    layout = communicator.from_root(establish)
    runner = Runner(
        config,
        assembly,
        directory,
        communicator,
        distribution,
        dataclasses.replace(checkpoint, head=head),
        layout,
        dict(enumerate(provenance["origins"])),
        resumed=True,
    )
    if runner.seeds is not None and communicator.rank == 0:
        runner.seeds.restore(head.update - config.run.thermalization)
    communicator.together(runner.init_kernels)
    if not head.is_checked:
        runner.warn(
            f"{directory.checkpoint} comes from an earlier version of flowmc and has no checksums: "
            "only its actions and the presence of its rows were compared"
        )
    changed = [
        f"{key} was {provenance.get(key)} and is {value}"
        for key, value in environment(assembly.device).items()
        if provenance.get(key) != value
    ]
    if changed:
        runner.warn(f"{', '.join(changed)}: rounding may differ")
    return runner


def _check_same_run(config: RunConfig, directory: RunDirectory, head: Head) -> None:
    """Refuse a checkpoint of another run; collective errors name what differs.

    Raises:
        ConfigError: it is of another seed or configuration, or beyond the end of this one.
    """
    path, seed = directory.checkpoint, config.chains.seed
    remedy = "restore the one that belongs to it"
    if head.seed not in (None, seed):
        raise ConfigError(
            f"{path} is of a run with seed {head.seed}, not of this one with seed {seed}: {remedy}"
        )
    if head.configuration not in (None, identity_of(config.resolved)):
        raise ConfigError(
            f"{path} is of a run with another configuration than {directory.config}: {remedy}"
        )
    total = config.run.thermalization + config.run.updates
    if not 0 <= head.update <= total:
        raise ConfigError(f"{path} is at update {head.update} of a run that has {total}: {remedy}")


def _check_columns(config: RunConfig, assembly: Assembly, path: Path) -> None:
    """Raise ConfigError if the file was begun with kernels that report something else."""
    columns, _ = MeasurementFile.columns_in(path)
    reports = assembly.reports()
    with opened(path, "measurement file") as file:
        declarations = declarations_in(file["production"])
        check_declarations(
            path, columns, declarations, reports, layout_of(config, assembly, {}).columns
        )


def _try_kernels(assembly: Assembly, one: State | LadderState, seed: int) -> None:
    """Apply every kernel to one chain, thrown away: what it refuses must show before all else.

    Args:
        assembly: of the run.
        one: the state of a single chain, with all replicas.
        seed: of the run.

    Raises:
        ConfigError: for an info that the kernel has not declared; or as the step.
    """
    rng = stream(seed, 0, "rehearsal", assembly.device)
    diagnostics = Diagnostics(assembly.reports(), 1)
    for name, kernel in assembly.timed.items():
        if not all(inner.is_rehearsed for inner in kernels_in(kernel)):
            continue
        one, part = apply(kernel.kernel, one, rng)
        info = Info(torch.empty(0, 0, dtype=torch.bool), parts={name: part})
        for leaf_name, leaf in leaves(info, assembly.timed):
            diagnostics.add(0, 1, leaf_name, leaf)


def _check_states(
    config: RunConfig, assembly: Assembly, path: Path, checkpoint: Checkpoint
) -> None:
    """Compare the fields and actions of a checkpoint with the theory.

    Raises:
        ConfigError: a field is not of this theory, or its action is another one.
    """
    actions, own = assembly.actions, {block: () for block in checkpoint.states}
    if config.ladder is not None and config.ladder.tune:
        tuner = LadderTuner(config, own)
        tuner.set_tuning(checkpoint.head.tuning)
        moved = tuner.configured().ladder
        assert moved is not None
        actions = moved.actions
    for block, state in checkpoint.states.items():
        first, last = config.chains.blocks[block]
        replicas = state.here if isinstance(state, LadderState) else {0: state}
        for r, replica in replicas.items():
            where = f"{path}: chains {first} to {last - 1}"
            try:
                check_state(actions[r], replica, last - first, assembly.dtype)
            except (ConfigError, ValueError, TypeError) as error:
                raise ConfigError(f"{where}: {error}") from error


def distribute(config: RunConfig, assembly: Assembly, communicator: Communicator) -> Distribution:
    """Return which rank owns which replica of which block."""
    return Distribution.deal(
        communicator.size,
        len(config.chains.blocks),
        len(assembly.actions),
        order=config.parallel.deal,
        whole_ladders=not assembly.spreads,
    )
