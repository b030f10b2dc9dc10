"""How long a continuous flow of phi^4 trains until its ESS is 90 %, on 8x8 and 12x12.

    python examples/benchmarks/time_to_ess.py [--quick] [--threads 2] [--goal 0.9] ...

The flows of examples/zoo/phi4_8x8_l6.008.toml and phi4_12x12_l5.276.toml (m2 = -4, m_p L = 4), from
a Gaussian or free-field prior and untrained kernels, or from the zoo's flow of 8x8, by path
gradients and SOAP with batches of 128 and 32 integrator steps.  Every tenth step the ESS is that of
2,000 draws in 48 integrator steps, whose time is not counted.
"""

import argparse
import time
import tomllib
from pathlib import Path

import torch
from machine import print_header, print_row, processor

from flowmc.evaluation import evaluate_sampler
from flowmc.evaluation.density import DensityError
from flowmc.training import Trainer
from flowmc.training.plan import make_plan

ZOO = Path(__file__).parents[1] / "zoo"
NAMES = {8: "phi4_8x8_l6.008", 12: "phi4_12x12_l5.276"}
CONTENDERS = [(8, "gaussian", ""), (8, "free_field", ""), (12, "free_field", "")]
CONTENDERS += [(12, "free_field", f"zoo:{NAMES[8]}")]
TRAINING = {
    **{"optimiser": "soap", "learning_rate": 3e-3, "warmup": 10, "beta2": 0.99, "batch": 128},
    **{"gradient": "path", "precision": 32, "seed": 1, "schedule": "constant"},
}


def measured(model, action, samples):
    """Return ESS and error of a flow in 48 integrator steps, None if its density is wrong."""
    steps, model.flow.steps = model.flow.steps, 48
    try:
        found, _ = evaluate_sampler(model, action, samples)
        return found["ess"], found["ess_error"]
    except DensityError:
        return None
    finally:
        model.flow.steps = steps


def time_to(goal, extent, prior, start_from, steps, samples):
    """Train until a check finds the goal; return steps, seconds, and the ESS found with error."""
    tables = tomllib.loads((ZOO / f"{NAMES[extent]}.toml").read_text())
    tables["training"] = {**TRAINING, "steps": steps, "evaluate_samples": samples}
    if start_from:
        tables["training"]["start_from"] = start_from
    if prior == "gaussian":
        tables["prior"] = {"name": "gaussian"}
    tables["flow"]["steps"] = 32
    plan = make_plan(tables)
    trainer = Trainer(plan.build("cpu"), plan.settings)
    found, checks = None, 0.0

    def reached():
        nonlocal found, checks
        if trainer.step % 10 and trainer.step < steps:
            return False
        begin = time.perf_counter()
        found = measured(trainer.module, plan.action, samples)
        checks += time.perf_counter() - begin
        return found is not None and found[0] >= goal

    begin = time.perf_counter()
    trainer.run(reached)
    return trainer.step, time.perf_counter() - begin - checks, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="seconds; little is learnt")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--goal", type=float, default=0.9)
    parser.add_argument("--steps", type=int, default=300, help="at most")
    parser.add_argument("--samples", type=int, default=2000, help="of a check")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steps, samples = (11, 64) if args.quick else (args.steps, args.samples)
    print(f"{processor()}, {args.threads} threads\n")
    print_header(["lattice", "prior", "kernels of", "steps", "seconds", "ESS"])
    for extent, prior, start_from in CONTENDERS[1::2] if args.quick else CONTENDERS:
        step, seconds, found = time_to(args.goal, extent, prior, start_from, steps, samples)
        print_row(
            [
                f"{extent}x{extent}",
                prior.replace("_", " "),
                start_from or "none",
                step,
                f"{seconds:.0f}",
                "{:.3f}({:.3f})".format(*found) if found else "not measured: density error",
            ]
        )


if __name__ == "__main__":
    main()
