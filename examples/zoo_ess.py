r"""The effective sample size of the zoo's flows of two-dimensional phi^4 against the lattice.

All of m^2 = -4 at m_p L = 4; the numbers are those that each flow was measured with, in its card.

    python examples/zoo_ess.py ess.svg
"""

import argparse

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt

from flowmc import zoo


def measured():
    """Return extent, ESS and acceptance of every flow of the line, smallest lattice first."""
    cards = [zoo.card(name) for name in zoo.zoo_list() if name.startswith("phi4_")]
    return sorted(
        (card["theory"]["lattice"][0], card["measured"]["ess"], card["measured"]["acceptance"])
        for card in cards
        if card["kind"] == "sampler"
        and card["flow"]["name"] == "continuous"
        and len(set(card["theory"]["lattice"])) == 1
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", help="file to write, .svg or .png")
    args = parser.parse_args()

    extents, ess, acceptance = zip(*measured(), strict=True)
    plt.rcParams.update({"svg.hashsalt": "flowmc", "font.size": 11, "svg.fonttype": "none"})
    figure, axes = plt.subplots(figsize=(7, 3))
    axes.plot(extents, ess, "o-", color="#2f6db3", label="ESS per draw")
    axes.plot(extents, acceptance, "s--", color="#c4572a", label="acceptance")
    axes.set_xscale("log", base=2)
    axes.set_xticks(extents, [f"{extent}x{extent}" for extent in extents])
    axes.minorticks_off()
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("lattice")
    axes.legend(frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(args.picture, metadata={"Date": None} if args.picture[-3:] == "svg" else None)


if __name__ == "__main__":
    main()
