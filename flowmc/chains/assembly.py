"""From a validated configuration to the objects of a run: flows, kernels, device, precision."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flowmc import native
from flowmc.actions.base import Action
from flowmc.chains.config import RunConfig
from flowmc.chains.diagnostics import reports_of
from flowmc.config.entries import UpdateEntry
from flowmc.flows.base import Flow, Identity
from flowmc.flows.local.models import LocalFlowModel
from flowmc.flows.models import FlowModel
from flowmc.kernels import (
    Cycle,
    EachReplica,
    Info,
    Kernel,
    KernelReport,
    Mixture,
    OnReplica,
    Repeat,
)
from flowmc.kernels.base import apply, begin
from flowmc.parallel import Communicator
from flowmc.parallel.devices import choose_device
from flowmc.random import Randomness
from flowmc.registry import ConfigError

__all__ = ["Assembly", "TimedKernel", "assemble"]


@dataclass(frozen=True)
class Assembly:
    """What a run is made of.

    Attributes:
        actions: one per replica.
        kernel: the cycle or mixture of all updates.
        timed: its top-level kernels by name, with their clocks.
        start_model: the flow model of the first kernel that has one, or None.
        fingerprints: digest of every flow by its name in the configuration.
        cards: the flows' cards likewise.
        dtype: of the real components of fields.
        device: where fields live.
        remarks: what users should know of this choice of flows, precision and device.
    """

    actions: list[Action]
    kernel: Cycle | Mixture
    timed: Mapping[str, TimedKernel]
    start_model: FlowModel | None
    fingerprints: Mapping[str, str]
    cards: Mapping[str, Mapping[str, Any]]
    dtype: torch.dtype
    device: torch.device
    remarks: tuple[str, ...] = ()

    @property
    def is_ladder(self) -> bool:
        """Whether states are ladders of replicas."""
        return len(self.actions) > 1

    def reports(self) -> dict[str, KernelReport]:
        """Return what the kernels report; see :func:`flowmc.chains.diagnostics.reports_of`.

        Raises:
            ConfigError: two kernels report different values under one name.
        """
        return reports_of(self.timed)

    @property
    def spreads(self) -> bool:
        """Whether the replicas of a ladder may live on several ranks."""
        return all(kernel.spreads for kernel in self.timed.values())


class TimedKernel(Kernel):
    """A kernel with a clock: wall seconds and applications, over all blocks of chains."""

    takes_streams = True

    def __init__(self, kernel: Kernel, device: torch.device, where: str) -> None:
        self.kernel, self.name, self.title = kernel, kernel.name, kernel.title
        self.spreads, self.reports = kernel.spreads, kernel.reports
        self.seconds, self.calls = 0.0, 0
        self._device, self._where = device, where

    def reports_of_parts(self) -> Sequence[tuple[str, KernelReport]]:
        return self.kernel.reports_of_parts()

    def init(self, field: Any) -> Any:
        try:
            return begin(self.kernel, field)
        except ValueError as error:
            raise ConfigError(f"{self._where}: {error}") from error

    @property
    def adapts(self):
        return self.kernel.adapts

    def step(self, state: Any, rng: Randomness) -> tuple[Any, Info]:
        begin = time.perf_counter()
        result = apply(self.kernel, state, rng)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds += time.perf_counter() - begin
        self.calls += getattr(self.kernel, "times", 1)
        return result

    def adapt(self, info, update):
        self.kernel.adapt(info, update)

    def tuning(self):
        return self.kernel.tuning()

    def set_tuning(self, values):
        self.kernel.set_tuning(values)


def assemble(config: RunConfig, communicator: Communicator | None = None) -> Assembly:
    """Load the flows and build the kernels of a configuration.

    Args:
        config: what to run.
        communicator: of all ranks, among which the GPUs are dealt; one rank alone by default.

    Raises:
        ConfigError: for a flow of another theory, values that a kernel refuses, or a device that
            is not there; the message names the table.
    """
    device = choose_device(config.chains.device, communicator or Communicator())
    dtype = torch.float64 if config.chains.precision == 64 else torch.float32
    flows = _Flows(config, dtype, device)
    kernels = [_kernel(entry, config, flows) for entry in config.updates]
    timed = [
        TimedKernel(kernel, device, entry.where)
        for kernel, entry in zip(kernels, config.updates, strict=True)
    ]
    top: Cycle | Mixture
    if config.run.schedule == "cycle":
        top = Cycle(timed)
    else:
        top = Mixture(timed, [entry.weight for entry in config.updates])
    named = {name: part for name, part in top.parts.items() if isinstance(part, TimedKernel)}
    return Assembly(
        config.actions,
        top,
        named,
        flows.first_model,
        flows.fingerprints,
        flows.cards,
        dtype,
        device,
        (*flows.remarks, *_remarks_on_engine(config.action, device)),
    )


def _remarks_on_engine(action: Action, device: torch.device) -> list[str]:
    """Say when an action of a run on a CPU is not compiled, and why."""
    is_computed = action.is_known or action.has_auxiliaries
    is_asked = is_computed and device.type == "cpu" and native.is_on()
    reason = native.why_in_torch(action) if is_asked else None
    if reason is None:
        return []
    return [f"the action {type(action).__name__} runs in plain torch, not compiled: {reason}"]


class _Flows:
    """Loads every flow once, in the precision and on the device of the run."""

    def __init__(self, config: RunConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.first_model: FlowModel | None = None
        self.fingerprints: dict[str, str] = {}
        self.cards: dict[str, Mapping[str, Any]] = {}
        self.remarks: list[str] = []
        self._models: dict[str, tuple[dict[str, Any], FlowModel | LocalFlowModel]] = {}

    def _load(self, written: str) -> Any:
        from flowmc.flows.cards.files import load_flow

        source = written if written.startswith("zoo:") else self.config.path(written)
        loaded = load_flow(source, lattice=self.config.action.lattice, device=self.device)
        self.cards[written] = loaded.card
        return loaded

    def _load_model(self, entry: UpdateEntry) -> tuple[dict[str, Any], FlowModel | LocalFlowModel]:
        """Load the flow of an update, of the kind that its kernel takes."""
        from flowmc.flows.cards.files import load_local_flow
        from flowmc.flows.cards.matching import check_flow_fits

        written = entry.flow
        assert written is not None
        if not entry.takes_local_flow:
            loaded = self._load(written)
            check_flow_fits(loaded.card, loaded.flow, self.config.action, same_couplings=False)
            model = loaded.model.to(self.dtype)
            self.first_model = self.first_model or model
            self._remark_on(written, model)
            return loaded.card, model
        source = written if written.startswith("zoo:") else self.config.path(written)
        local = load_local_flow(source, device=self.device)
        check_flow_fits(local.card, None, self.config.action, same_couplings=False)
        self.cards[written] = local.card
        return local.card, local.model.to(self.dtype)

    def model(self, entry: UpdateEntry) -> tuple[FlowModel | LocalFlowModel, int]:
        """Return the flow model of an update, and the replica whose theory it was trained for."""
        from flowmc.flows.cards.matching import check_flow_fits

        assert entry.flow is not None
        try:
            if entry.flow not in self._models:
                card, model = self._load_model(entry)
                self._models[entry.flow] = card, model
            card, model = self._models[entry.flow]
            refusal: ConfigError | None = None
            for replica, action in enumerate(self.config.actions):
                try:
                    flow = model.flow if isinstance(model, FlowModel) else None
                    check_flow_fits(card, flow, action)
                    model = model.at(action)
                    self.fingerprints[entry.flow] = model.fingerprint()
                    return model, replica
                except ConfigError as error:
                    refusal = refusal or error
            assert refusal is not None
            raise refusal
        except ConfigError as error:
            raise ConfigError(f"{entry.where}: flow = {entry.flow!r}: {error}") from error

    def between(self, written: str, pair: int) -> Flow:
        """Return the flow from replica ``pair`` to the next."""
        from flowmc.flows.cards.matching import orient

        if written == "identity":
            return Identity()
        first, second = self.config.actions[pair : pair + 2]
        try:
            loaded = self._load(written)
            flow = orient(loaded.card, loaded.flow.to(self.dtype), first, second)
        except ConfigError as error:
            raise ConfigError(f"[ladder]: flows: {written!r}: {error}") from error
        self.fingerprints[written] = flow.fingerprint()
        self._remark_on(written, flow)
        return flow

    def _remark_on(self, written: str, flow: Flow | FlowModel) -> None:
        from flowmc.flows.verification import unverified

        found = [unverified(flow, self.config.action)]
        found += [
            part.speed_remark(self.dtype, self.device)
            for part in flow.modules()
            if isinstance(part, Flow)
        ]
        for text in filter(None, found):
            if f"{written}: {text}" not in self.remarks:  # one flow may serve many pairs
                self.remarks.append(f"{written}: {text}")


def _kernel(entry: UpdateEntry, config: RunConfig, flows: _Flows) -> Kernel:
    kernel: Kernel
    try:
        if entry.takes_ladder:
            assert config.ladder is not None
            between = [flows.between(name, pair) for pair, name in enumerate(config.ladder.flows)]
            kernel = entry.component(config.actions, between, **entry.keys)
        elif entry.takes_flow:
            model, replica = flows.model(entry)
            kernel = entry.component(config.actions[replica], model, **entry.keys)
            if config.ladder is not None:
                kernel = OnReplica(kernel, replica)
        elif config.ladder is not None:
            each = [entry.made(action, config.base) for action in config.actions]
            kernel = EachReplica(each, config.actions)
        else:
            kernel = entry.made(config.action, config.base)
    except (ConfigError, ValueError, TypeError) as error:
        message = str(error)
        prefixed = message.startswith(("[[", "[ladder]"))
        raise ConfigError(message if prefixed else f"{entry.where}: {message}") from error
    if not isinstance(kernel, Kernel):
        raise ConfigError(f"{entry.where}: gives no flowmc.kernels.Kernel")
    return Repeat(kernel, entry.repeat) if entry.repeat > 1 else kernel
