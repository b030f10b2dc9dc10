"""Judge the flows of the zoo by the numbers on their cards: ``python examples/zoo/judge_cards.py``.

Writes into every card, in the flow file and in its copy, what ``flowmc evaluate`` would say about
the numbers that were measured after the training (``measured.warnings``), and the training times of
the flows that a training began from (``training.ancestors``).  Nothing is trained or measured anew:
cards that were made before these entries get them, weights stay as they are.
"""

from __future__ import annotations

import json
import math

from flowmc import zoo
from flowmc.evaluation.weights import weight_warnings
from flowmc.flows.cards.files import atomic_save, read_tensors


def main() -> None:
    for name in zoo.zoo_list():
        path = zoo.path(name)
        tensors, card = read_tensors(path)
        measured, training = card["measured"], card["training"]
        if measured.get("ess") is not None:
            k = measured.get("pareto_k")
            measured["warnings"] = weight_warnings(
                measured["samples"],
                measured["ess"],
                measured["max_weight_share"],
                math.nan if k is None else k,
                measured["log_z_error"],
            )
        else:
            measured.setdefault("warnings", [])
        ancestors = zoo.ancestors(training)
        if ancestors:
            training["ancestors"] = [
                {"flow": flow, "seconds": seconds} for flow, seconds in ancestors.items()
            ]
        atomic_save(path, tensors, card)
        text = json.dumps(card, indent=2) + "\n"
        path.with_suffix(".json").write_text(text, encoding="utf-8")
        print(f"{name}: {'; '.join(measured['warnings']) or 'sound'}")


if __name__ == "__main__":
    main()
