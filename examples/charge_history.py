r"""The topological charge of one chain, by HMC alone and by HMC with a flow, as a picture.

Two-dimensional U(1) on 16x16 at beta = 7, where HMC hardly ever leaves a sector; the flow of the
zoo proposes whole fields, which independence Metropolis accepts or not, so both chains are exact.

    python examples/charge_history.py charge.svg
"""

import argparse

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import torch

import flowmc


def charges(kernels, action, updates):
    """Return the topological charge after every update of one chain, ``(updates,)``."""
    start = action.cold(1, torch.float64)
    chains = flowmc.sample(kernels, start, updates, seed=4, observables=["topological_charge"])
    return chains.series("topological_charge").reshape(-1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", help="file to write, .svg or .png")
    parser.add_argument("--updates", type=int, default=600)
    args = parser.parse_args()

    action = flowmc.actions.Wilson("U(1)", [16, 16], beta=7.0)
    model = flowmc.load_flow("zoo:u1_2d_b7.00").model.to(torch.float64)
    hmc = flowmc.kernels.HMC(action, steps=10)
    flow = flowmc.kernels.Independence(action, model, proposals=4)
    series = {
        "HMC": charges(hmc, action, args.updates),
        "HMC and 4 proposals of a flow": charges([hmc, flow], action, args.updates),
    }

    plt.rcParams.update({"svg.hashsalt": "flowmc", "font.size": 11, "svg.fonttype": "none"})
    figure, rows = plt.subplots(2, 1, figsize=(7, 4), sharex=True, sharey=True)
    for row, (name, values) in zip(rows, series.items(), strict=True):
        row.plot(values, drawstyle="steps-mid", linewidth=1, color="#2f6db3")
        row.set_title(name, loc="left", fontsize=11)
        row.set_ylabel("Q")
        row.spines[["top", "right"]].set_visible(False)
    rows[-1].set_xlabel("update")
    figure.tight_layout()
    figure.savefig(args.picture, metadata={"Date": None} if args.picture[-3:] == "svg" else None)


if __name__ == "__main__":
    main()
