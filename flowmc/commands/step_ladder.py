"""``flowmc step`` on ladders: one file per replica, all or none of which are replaced.

Beside the file of replica 0 stands a small side file, ``lat.1001.ladder``: walkers, the number of
sweeps, and the random streams of the replicas, with which the next step goes on as a run would.
Without one a ladder begins: at number 1 exactly as a run does, at other numbers with streams of
their own, so that no random number is used twice.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flowmc_adapters import atomic_write
from torch import Tensor

from flowmc.chains.assembly import Assembly
from flowmc.chains.config import RunConfig
from flowmc.chains.diagnostics import Diagnostics, leaves
from flowmc.chains.measuring import measure
from flowmc.chains.start import first_state, purpose_of
from flowmc.chains.stepper import check_finite, numbers_of
from flowmc.chains.storage.checkpoint import settled
from flowmc.io import with_signs, write_field
from flowmc.kernels import Info, LadderState
from flowmc.kernels.base import apply
from flowmc.random import Streams, stream
from flowmc.registry import ConfigError

__all__ = ["LadderStep", "commit", "finish_commits", "paths_of", "side_file", "step_ladder", "told"]

_PLACEHOLDER = "{replica}"
_LAYOUT = 1


@dataclass(frozen=True)
class LadderStep:
    """What one update has made of a ladder.

    Attributes:
        state: of all replicas.
        infos: of the elementary kernels.
        streams: of the replicas, for the side file.
        began: whether there was no side file.
    """

    state: LadderState
    infos: Mapping[str, Info]
    streams: Mapping[int, torch.Generator]
    began: bool


def paths_of(pattern: str, replicas: int) -> list[str]:
    """Return the files of a ladder.

    Raises:
        ConfigError: the pattern does not tell the replicas apart.
    """
    if _PLACEHOLDER not in pattern:
        raise ConfigError(
            f"{pattern}: a ladder of {replicas} needs files, one per replica: write {_PLACEHOLDER} "
            "where their names differ, as in 'r{replica}/lat.1001'"
        )
    return [pattern.replace(_PLACEHOLDER, str(r)) for r in range(replicas)]


def side_file(paths: Sequence[str]) -> Path:
    """Return the side file of the files of a ladder."""
    return Path(f"{paths[0]}.ladder")


def step_ladder(
    config: RunConfig, assembly: Assembly, fields: Sequence[Tensor], side: Path, number: int
) -> LadderStep:
    """Apply the cycle of a configuration once to a ladder, as ``flowmc run`` does in this update.

    Args:
        config, assembly: of it.
        fields: of all replicas, ``(1, ...)`` each.
        side: of the files of these fields; it need not exist.
        number: of the configurations that are made, which is that of the update.

    Raises:
        ConfigError: the side file is damaged, of another seed or ladder, or not below the number;
            a kernel is not right for the fields.
    """
    seed, replicas = config.chains.seed, len(fields)
    state = first_state(assembly.kernel, assembly.actions, dict(enumerate(fields)), 0)
    state = settled(state)
    assert isinstance(state, LadderState)
    stored = _read(side, seed, replicas, number)
    if stored is None:
        purpose = "update" if number == 1 else f"update, from step {number}"
        streams = {
            r: stream(seed, 0, purpose_of(purpose, r), assembly.device) for r in range(replicas)
        }
        # Pairs of both parities have their turns, also where no side file is kept.
        state = replace(state, sweep=max(0, number - 1))
    else:
        streams = {}
        for r in range(replicas):
            streams[r] = torch.Generator(device=assembly.device)
            raw = np.frombuffer(base64.b64decode(stored["streams"][r]), np.uint8)
            streams[r].set_state(torch.from_numpy(raw.copy()))
        walkers = torch.tensor([stored["walkers"]], dtype=torch.int64)
        state = replace(state, sweep=int(stored["sweep"]), walkers=walkers)
    moved, info = apply(assembly.kernel, state, Streams(seed, 0, number, streams))
    moved = settled(moved)
    assert isinstance(moved, LadderState)
    for replica in moved.here.values():
        check_finite(replica.field)
    infos = dict(leaves(info, assembly.kernel.parts))
    reported = Diagnostics(assembly.reports(), 1)
    for name, one in infos.items():
        reported.add(0, 1, name, one)
    return LadderStep(moved, infos, streams, stored is None)


def _read(side: Path, seed: int, replicas: int, number: int) -> dict[str, Any] | None:
    """Return what a side file says; None without one.

    Raises:
        ConfigError: it is damaged, or of another stream of ladders.
    """
    try:
        text = side.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        found = json.loads(text)
        walkers, streams = found["walkers"], found["streams"]
        sound = found["layout"] == _LAYOUT and sorted(walkers) == list(range(len(walkers)))
        if not sound or len(streams) != len(walkers):
            raise ValueError("it is of another version, or not whole")
        before, own, sweep = int(found["number"]), int(found["seed"]), int(found["sweep"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{side} is damaged ({error}): restore it, or remove it") from error
    if len(walkers) != replicas:
        raise ConfigError(f"{side} is of a ladder of {len(walkers)} replicas, not of {replicas}")
    if own != seed:
        raise ConfigError(
            f"{side} is of a stream with seed {own}, [chains] has {seed}: take that one, or remove "
            "the file to begin with this one"
        )
    if before >= number or sweep < 0:
        raise ConfigError(
            f"{side} is of number {before}, so that the next is above, not {number}: the random "
            "numbers of one that was before would be used again"
        )
    return found


def commit(
    config: RunConfig,
    done: LadderStep,
    paths: Sequence[str],
    number: int,
    *,
    format: str,
    precision: int | None,
    metadata: Sequence[Mapping[str, str]],
    signs: Sequence[Sequence[int]],
) -> None:
    """Write the files of a ladder and its side file: all of them, or none.

    All are written under other names first.  When a list of these is on the disk they are moved,
    and a kill in between is made good by the next step (:func:`finish_commits`).

    Args:
        config: of the ladder.
        done: what was made.
        paths: of the replicas.
        number: of the configurations.
        format, precision: of the files.
        metadata, signs: of each file.

    Raises:
        OSError, FormatError: a file cannot be written; the old ones are as they were.
    """
    side = side_file(paths)
    try:
        for r, path in enumerate(paths):
            write_field(
                _beside(path),
                with_signs(done.state.replica(r).field, signs[r]),
                config.actions[r],
                format=format,
                precision=precision,
                metadata=metadata[r],
            )
        text = {
            "layout": _LAYOUT,
            "seed": config.chains.seed,
            "number": number,
            "sweep": done.state.sweep,
            "walkers": done.state.walkers[0].tolist(),
            "streams": [
                base64.b64encode(done.streams[r].get_state().numpy().tobytes()).decode()
                for r in range(len(paths))
            ],
        }
        _write_json(_beside(side), text)
        _write_json(_journal(side), _listed(paths))
    except BaseException:
        for path in [*paths, str(side)]:
            _beside(path).unlink(missing_ok=True)
        raise
    finish_commits(paths)


def finish_commits(paths: Sequence[str]) -> None:
    """Move what an earlier step, killed in between, has left to be moved into its place.

    Raises:
        ConfigError: the list of files that it has left is damaged, or of other files.
    """
    side = side_file(paths)
    journal = _journal(side)
    try:
        found = json.loads(journal.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        found = None
    # Nothing is moved because a file says so: only what this ladder would have moved.
    if found != _listed(paths):
        raise ConfigError(
            f"{journal} was left by a step that was killed while it replaced other files than "
            f"those of this ladder, {', '.join(paths)}: name those, or remove it"
        )
    for path in [*paths, str(side)]:
        # What is no longer there was moved before the kill.
        with contextlib.suppress(FileNotFoundError):
            os.replace(_beside(path), path)
    journal.unlink()


def _listed(paths: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of a ladder as its list of moves has them: they may all move together."""
    side = side_file(paths)
    folder = str(side.absolute().parent)
    return {"files": [os.path.relpath(one, folder) for one in [*paths, str(side)]]}


def told(
    args: argparse.Namespace,
    config: RunConfig,
    assembly: Assembly,
    number: int,
    done: LadderStep,
) -> None:
    """Say what was done, in words or as JSON."""
    shares = {
        name: (int(one.is_accepted.sum()), one.is_accepted.numel())
        for name, one in done.infos.items()
    }
    walkers = done.state.walkers[0].tolist()
    observables = {
        entry.label: measure(entry, assembly.actions, done.state)[0].tolist()
        for entry in config.observables
    }
    if args.json:
        report = {
            "source": args.source,
            "destination": args.destination,
            "number": number,
            "acceptance": {
                name: accepted / tried if tried else None
                for name, (accepted, tried) in shares.items()
            },
            "kernels": {
                name: {key: numbers_of(value) for key, value in one.values.items()}
                for name, one in done.infos.items()
            },
            "walkers": walkers,
            "sweep": done.state.sweep,
            "observables": observables,
        }
        print(json.dumps(report, indent=2))
        return
    parts = [f"{name} {accepted} of {tried}" for name, (accepted, tried) in shares.items() if tried]
    print(
        f"{args.source} -> {args.destination}: accepted {', '.join(parts)}; walkers "
        f"{' '.join(map(str, walkers))}"
    )


def _beside(path: str | Path) -> Path:
    path = Path(path).absolute()
    return path.with_name(f".{path.name}.new")


def _journal(side: Path) -> Path:
    side = side.absolute()
    return side.with_name(f".{side.name}.moves")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
