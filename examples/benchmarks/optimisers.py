"""How far optimisers get: the continuous flow on 12x12 from that of 8x8, step for step.

    OMP_NUM_THREADS=1 python examples/benchmarks/optimisers.py [--quick] [--steps 120] ...

Every contender trains the same flow for the same number of steps on batches of the same streams;
its sampler is then measured with an integrator of 48 steps.  Two and a half minutes of one core
each.
"""

import argparse
import tomllib
from pathlib import Path

from machine import print_header, print_row, processor

from flowmc.evaluation import evaluate_sampler
from flowmc.evaluation.density import DensityError
from flowmc.training import Trainer
from flowmc.training.plan import make_plan

CONFIG = Path(__file__).parents[1] / "zoo" / "phi4_12x12_l5.276.toml"
CONTENDERS = [("adam", 1e-3), ("adam", 3e-3), ("soap", 3e-3), ("soap", 1e-2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="seconds; little is learnt")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--samples", type=int, default=4000)
    args = parser.parse_args()
    steps, batch, samples = (3, 8, 64) if args.quick else (args.steps, args.batch, args.samples)
    print(f"{processor()}; {steps} steps of {batch} samples\n")
    print_header(["optimiser", "learning rate", "ESS", "acceptance", "seconds"])
    for optimiser, rate in CONTENDERS[::3] if args.quick else CONTENDERS:
        tables = tomllib.loads(CONFIG.read_text())
        tables["flow"]["steps"] = 24
        tables["training"] |= {
            "optimiser": optimiser,
            "learning_rate": rate,
            "steps": steps,
            "batch": batch,
            "warmup": min(10, steps - 1),
            "seed": 2,
        }
        plan = make_plan(tables)
        trainer = Trainer(plan.build("cpu"), plan.settings)
        trainer.run()
        model = trainer.module
        model.flow.steps = 48
        try:
            result, _ = evaluate_sampler(model, plan.action, samples)
            found = f"{result['ess']:.4f}({result['ess_error']:.4f})", f"{result['acceptance']:.3f}"
        except DensityError:
            found = "not measured: density error", ""
        print_row([optimiser, rate, *found, f"{trainer.seconds:.0f}"])


if __name__ == "__main__":
    main()
