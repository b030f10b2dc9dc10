"""Synthetic run directories with known statistics, and what `flowmc report` says about them."""

import argparse
import json
import math
import re
from xml.etree import ElementTree

import h5py
import numpy as np
from scipy.signal import lfilter
from scipy.special import erfc

from flowmc import arguments
from flowmc.commands import report

CONFIG = """
[theory]
action = "wilson"
group = "U(1)"
lattice = [16, 16]
beta = 6.0

[chains]
count = {chains}
seed = 7

[[update]]
kernel = "hmc"
trajectory = 1.0
steps = 10
"""


def autoregressive(rng, shape, coefficient):
    noise = rng.normal(size=shape)
    noise[1:] *= math.sqrt(1 - coefficient**2)
    return lfilter([1], [1, -coefficient], noise, axis=0)


def ladder_walk(rng, rows, chains, replicas, hop_rates, swap_rate):
    """Charges that hop at their replica's rate, and walkers that are exchanged even/odd."""
    charge = np.zeros((chains, replicas))
    walkers = np.tile(np.arange(replicas), (chains, 1))
    charges, labels = [], []
    accepted = np.zeros((rows, replicas - 1, chains), np.int64)
    tried = np.zeros_like(accepted)
    for row in range(rows):
        width = 1.5
        step = rng.choice([-1, 1], size=charge.shape)
        proposal = charge + step
        allowed = rng.random(charge.shape) < np.exp((charge**2 - proposal**2) / (2 * width**2))
        charge = np.where(allowed & (rng.random(charge.shape) < hop_rates), proposal, charge)
        for pair in range(row % 2 if replicas > 2 else 0, replicas - 1, 2):
            swap = rng.random(chains) < swap_rate[pair]
            tried[row, pair], accepted[row, pair] = 1, swap
            for array in (charge, walkers):
                first = array[swap, pair].copy()
                array[swap, pair] = array[swap, pair + 1]
                array[swap, pair + 1] = first
        charges.append(charge.copy())
        labels.append(walkers.copy())
    return np.array(charges), np.array(labels), accepted, tried


def make_run(
    path,
    *,
    seed=1,
    rows=1000,
    written=None,
    thermalization=100,
    chains=4,
    replicas=1,
    measure_every=1,
    coefficient=0.8,
    seconds_per_update=0.5,
    charge=False,
    independence=False,
    energy_error=0.3,
    energy_offset=0.0,
    vector=True,
    provenance=None,
    hop_rates=(0.003, 0.03, 0.3),
    couplings=(6.0, 4.5, 3.0),
):
    """Write a run directory as the contract of flowmc.chains says, with known statistics."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True, exist_ok=True)
    written = rows if written is None else written
    with h5py.File(path / "measurements.h5", "w") as file:
        file.attrs.update(
            layout=1,
            chains=chains,
            replicas=replicas,
            measure_every=measure_every,
            thermalization=thermalization,
            updates=rows * measure_every,
        )
        if replicas > 1:
            group = file.create_group("replicas")
            group.attrs["couplings"] = json.dumps([{"beta": b} for b in couplings[:replicas]])
        start = 0
        for phase, count in (
            ("thermalization", thermalization // measure_every),
            ("production", rows),
        ):
            done = count if phase == "thermalization" else written
            group = file.create_group(phase)
            updates = start + measure_every * np.arange(1, count + 1)
            start += thermalization
            updates[done:] = -1
            group["updates"] = updates

            def put(name, values, group=group, done=done):
                values = np.array(values)
                values[done:] = -1 if values.dtype.kind == "i" else np.nan
                group[name] = values

            shape = (count, chains, replicas)
            relaxation = np.zeros((1, 1, 1))
            if phase == "thermalization":
                relaxation = 0.2 * np.exp(-np.arange(count) / 15.0)[:, None, None]
            noise = autoregressive(rng, shape, coefficient)
            mean = 0.9 - 0.08 * np.arange(replicas)
            put("observables/plaquette", mean + 0.01 * noise - relaxation)
            if vector:
                decay = np.exp(-np.arange(5) / 2.0)
                put(
                    "observables/correlator",
                    decay * (1 + 0.1 * autoregressive(rng, (*shape, 5), 0.5)),
                )
            if replicas > 1:
                charges, walkers, accepted, tried = ladder_walk(
                    rng, count, chains, replicas, np.array(hop_rates)[:replicas], [0.25, 0.4]
                )
                put("walkers", walkers.reshape(shape).astype(np.int64))
                for pair in range(replicas - 1):
                    put(f"kernels/pair[{pair}]/accepted", accepted[:, pair])
                    put(f"kernels/pair[{pair}]/tried", tried[:, pair])
                    mu = (1.5, 0.7)[pair]
                    work = rng.normal(mu, math.sqrt(2 * mu), size=tried[:, pair].shape)
                    work = np.where(tried[:, pair] > 0, work, np.nan)
                    put(f"kernels/pair[{pair}]/work", work)
            elif charge:
                charges = np.zeros(shape)
                charges[count // 2 :, 0] = 1.0
            if charge or replicas > 1:
                put(
                    "observables/topological_charge",
                    charges.reshape(shape) + 1e-9 * rng.normal(size=shape),
                )
            for replica in range(replicas):
                name = "hmc" if replicas == 1 else f"hmc[{replica}]"
                variance = 2 * energy_error
                error = rng.normal(energy_error, math.sqrt(variance), size=(count, chains))
                error += energy_offset
                put(f"kernels/{name}/accepted", (rng.random(error.shape) < np.exp(-error)) * 1)
                put(f"kernels/{name}/tried", np.ones(error.shape, np.int64))
                put(f"kernels/{name}/energy_error", error)
                put(f"kernels/{name}/exp_minus_energy_error", np.exp(-error))
                put(f"kernels/{name}/non_finite", np.zeros(error.shape))
                put(f"kernels/{name}/acceptance_probability", np.minimum(1, np.exp(-error)))
                violation = np.full(error.shape, np.nan)
                violation[::50] = 1e-13 * (1 + rng.random(violation[::50].shape))
                put(f"kernels/{name}/reversibility_violation", violation)
            if independence:
                proposals = 0.7 * rng.normal(size=(count, chains, 8)) - 0.245
                accepted = (rng.random((count, chains, 8)) < erfc(0.35)).sum(2)
                put("kernels/independence/accepted", accepted)
                put("kernels/independence/tried", np.full((count, chains), 8))
                put("kernels/independence/log_weights", proposals)
                held = 0.7 * rng.normal(size=(count, chains)) + 0.245
                put("kernels/independence/log_weight", held)
                put("kernels/independence/non_finite", np.zeros((count, chains)))
    (path / "config.toml").write_text(CONFIG.format(chains=chains))
    (path / "provenance.json").write_text(json.dumps(provenance or {"flowmc": "0.1.0"}))
    names = ["hmc"] + ["exchange"] * (replicas > 1) + ["independence"] * independence
    total = thermalization + written * measure_every
    with open(path / "log.jsonl", "w") as log:
        for update in np.linspace(0, total, 12).astype(int).tolist():
            seconds = 10.0 + seconds_per_update * update
            times = {
                name: {"seconds": share * seconds, "calls": update}
                for name, share in zip(names, (0.7, 0.2, 0.1), strict=False)
            }
            event = {"event": "progress", "update": update, "seconds": seconds, "kernels": times}
            log.write(json.dumps(event) + "\n")
        log.write('{"event": "progr')  # killed while writing
    with h5py.File(path / "checkpoint.h5", "w") as file:
        tuning = {"hmc/log_step_size": math.log(0.11)}
        if replicas > 1:
            tuning = {f"hmc/{r}/log_step_size": math.log(0.11 - 0.02 * r) for r in range(replicas)}
        # Of the time before there were checksums.
        file.attrs.update(layout=2, update=total, tuning=json.dumps(tuning))
    return path


def invoke(*words):
    parser = argparse.ArgumentParser()
    arguments.report(parser)
    return report.run(parser.parse_args([str(word) for word in words]))


def drawings_of(page):
    """Return the drawings of a page, each of which has to be well-formed."""
    drawings = re.findall(r"<svg.*?</svg>", page, re.S)
    assert all(ElementTree.fromstring(drawing).tag.endswith("svg") for drawing in drawings)
    return drawings


def refuse(constant):
    raise ValueError(f"{constant} is not JSON")
