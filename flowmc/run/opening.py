"""How a run begins: a new directory, or the checkpoint of an earlier process."""

from __future__ import annotations

from typing import Any

from flowmc.kernels import LadderState, State
from flowmc.parallel import Communicator
from flowmc.parallel.devices import choose_threads
from flowmc.parallel.distribution import Distribution
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.run.assembly import Assembly, assemble
from flowmc.run.checkpoint import Checkpoint, read_checkpoint, settled, write_checkpoint
from flowmc.run.columns import attributes_of, couplings_of, layout_of, rows_of
from flowmc.run.config import RunConfig
from flowmc.run.diagnostics import Diagnostics
from flowmc.run.directory import RunDirectory, environment
from flowmc.run.ensemble import origin_of
from flowmc.run.ladder_tuning import check_tunable
from flowmc.run.measurements import Layout, MeasurementFile
from flowmc.run.rehearsal import observable_shapes, rehearse
from flowmc.run.runner import Runner
from flowmc.run.start import (
    StartFiles,
    initial_states,
    purpose_of,
    read_start_files,
    rehearsal_state,
)

__all__ = ["open_run"]


def open_run(
    config: RunConfig, directory: RunDirectory, communicator: Communicator, *, resume: bool
) -> Runner:
    """Start or resume the run of a directory; collective.

    With ``resume`` a directory without a checkpoint is started, so that one command line serves a
    job that is submitted again and again.

    Raises:
        ConfigError: the directory holds a run and ``resume`` is not set, is of another
            configuration or flow, or cannot be resumed; or the input is unusable.
        ValueError, OSError: the directory is damaged.
        CollectiveError: the same, on several ranks.
    """

    def look() -> bool:
        resuming = resume and directory.checkpoint.exists()
        if resuming:
            directory.check_resumable(config)
        elif directory.holds_a_run and not resume:
            raise ConfigError(
                f"{directory.path} already holds a run: add --resume to continue it, or choose "
                "another --output"
            )
        return resuming

    resuming = communicator.from_root(look)
    choose_threads(communicator)
    assembly = communicator.together(lambda: assemble(config, communicator))
    prepare = _resume if resuming else _start
    return prepare(config, assembly, directory, communicator)


def _start(
    config: RunConfig,
    assembly: Assembly,
    directory: RunDirectory,
    communicator: Communicator,
) -> Runner:
    """Prepare a new run and write its checkpoint at update 0; collective.

    Raises:
        ConfigError, FormatError, OSError: unusable input; the directory is then not made.
        CollectiveError: the same, on several ranks.
    """
    if config.ladder is not None and config.ladder.tune:
        check_tunable(config, assembly)
    distribution = _distribute(config, assembly, communicator)
    own = distribution.blocks_of(communicator.rank)
    seed = config.chains.seed

    def prepare() -> tuple[StartFiles, dict[int, State | LadderState]]:
        chains = {chain for block in own for chain in range(*config.chains.blocks[block])}
        if communicator.rank == 0:
            chains.add(0)
        files = read_start_files(config, assembly, sorted(chains))
        states = initial_states(config, assembly, files, own)
        return files, {block: settled(state) for block, state in states.items()}

    files, states = communicator.together(prepare)

    def try_out() -> tuple[dict[str, dict], dict[str, tuple[int, ...]]]:
        one = rehearsal_state(config, assembly, files)
        shapes = observable_shapes(config.observables, assembly.actions, one)
        return rehearse(assembly, one, seed), shapes

    schema, shapes = communicator.from_root(try_out)
    layout = layout_of(config, assembly, schema, shapes)
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
        origins, digests, _ = (
            {key: value for part in parts for key, value in part.items()}
            for parts in zip(*gathered, strict=True)
        )
        directory.claim()
        directory.write_provenance(
            config,
            assembly,
            digests,
            [origins[chain] for chain in sorted(origins)],
            communicator.size,
        )
        directory.write_config(config)
        MeasurementFile.create(directory.measurements, layout).close()

    communicator.from_root(establish)
    streams = {
        (block, r): stream(seed, block, purpose_of("update", r), assembly.device).get_state()
        for block, replicas in own.items()
        for r in replicas
    }
    pending = Diagnostics(schema, config.chains.count).state()
    checkpoint = Checkpoint(0, states, streams, assembly.kernel.tuning(), pending)
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
        texts = {path: text for _, _, part in gathered for path, text in part.items()}
        for path, sentences in texts.items():
            for text in sentences:
                runner.journal.write("warning", 0, file=path, text=text)
    return runner


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

    def establish() -> tuple[Layout, dict[str, Any]]:
        directory.claim()
        directory.check_flows(assembly.fingerprints)
        columns, attributes = MeasurementFile.columns_in(directory.measurements)
        layout = Layout(
            rows_of(config),
            columns,
            attributes_of(config, assembly),
            attributes,
            couplings_of(assembly),
        )
        if MeasurementFile.rows_in(directory.measurements) != dict(layout.rows):
            MeasurementFile.extend(directory.measurements, layout).close()
        directory.write_config(config)
        return layout, directory.read_provenance()

    layout, provenance = communicator.from_root(establish)
    distribution = _distribute(config, assembly, communicator)
    own = distribution.blocks_of(communicator.rank)
    checkpoint = communicator.together(
        lambda: read_checkpoint(directory.checkpoint, assembly.device, own, len(assembly.actions))
    )
    runner = Runner(
        config,
        assembly,
        directory,
        communicator,
        distribution,
        checkpoint,
        layout,
        dict(enumerate(provenance["origins"])),
        resumed=True,
    )
    communicator.together(runner.init_kernels)
    for key, value in environment(assembly.device).items():
        if provenance.get(key) != value:
            text = f"{key} was {provenance.get(key)} and is {value}: rounding may differ"
            runner.journal.write("warning", runner.update, text=text)
    return runner


def _distribute(config: RunConfig, assembly: Assembly, communicator: Communicator) -> Distribution:
    """Return which rank owns which replica of which block."""
    return Distribution.deal(
        communicator.size,
        len(config.chains.blocks),
        len(assembly.actions),
        order=config.parallel.deal,
        whole_ladders=not assembly.spreads,
    )
