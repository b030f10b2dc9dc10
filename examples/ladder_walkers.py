r"""A ladder in the boundary conditions as a picture: where a walker goes, and what becomes of Q.

Two-dimensional U(1) on 16x16 at beta = 7, the run of ``u1_defect.toml`` with one chain.

    python examples/ladder_walkers.py walkers.svg
"""

import argparse
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np

import flowmc
from flowmc.cli import main as flowmc_command

CONFIGURATION = Path(__file__).with_name("u1_defect.toml")


def run(updates):
    """Return the production of the run, and its values of the defect."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["run", str(CONFIGURATION), "--output", folder + "/out"]
        for setting in ("chains.count=1", f"run.updates={updates}", "run.report=false"):
            command += ["--set", setting]
        if status := flowmc_command(command):
            sys.exit(status)
        recorded = flowmc.read_run(folder + "/out")
        return recorded.production, recorded.config["ladder"]["defect"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", help="file to write, .svg or .png")
    parser.add_argument("--updates", type=int, default=300)
    args = parser.parse_args()

    production, defects = run(args.updates)
    # places[update, walker]: the replica at which it is.
    places = np.argsort(production.walkers[:, 0], axis=1)
    charge = production.observables["topological_charge"][:, 0, 0]

    plt.rcParams.update({"svg.hashsalt": "flowmc", "font.size": 11, "svg.fonttype": "none"})
    figure, (ladder, below) = plt.subplots(
        2, 1, figsize=(7, 4.5), sharex=True, height_ratios=[3, 2]
    )
    ladder.plot(places, drawstyle="steps-mid", linewidth=0.6, color="#cccccc")
    ladder.plot(places[:, 0], drawstyle="steps-mid", linewidth=1.2, color="#c4572a")
    ladder.set_yticks(range(len(defects)), [f"{value:g}" for value in defects])
    ladder.invert_yaxis()
    ladder.set_ylabel("defect")
    ladder.set_title("walkers, one of them in colour", loc="left", fontsize=11)
    below.plot(charge, drawstyle="steps-mid", linewidth=1, color="#2f6db3")
    below.set_title("charge of the theory, defect = 1", loc="left", fontsize=11)
    below.set_ylabel("Q")
    below.set_xlabel("update")
    for part in (ladder, below):
        part.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(args.picture, metadata={"Date": None} if args.picture[-3:] == "svg" else None)


if __name__ == "__main__":
    main()
