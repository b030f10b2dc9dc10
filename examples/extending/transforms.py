"""Transforms of nflows and normflows for the sites of a lattice, in one file.

A function per transform: it gets the theory, and the keys of ``arguments`` in ``[flow]``.  Those of
zuko need none, as they are made from the number of features (``zuko_train.toml``).
"""

import torch


def checkerboard(lattice):
    """Return which sites have an even sum of coordinates, as numbers ``(V,)`` in memory's order."""
    places = torch.meshgrid(*[torch.arange(extent) for extent in lattice], indexing="ij")
    return (torch.stack(places).sum(0) % 2).reshape(-1)


def nflows_couplings(lattice, *, layers: int = 4, hidden: int = 32):
    """Affine couplings of nflows: even sites given the odd ones, and the other way round."""
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import AffineCouplingTransform, CompositeTransform

    mask = checkerboard(lattice)

    def net(given, moved):
        return ResidualNet(given, moved, hidden_features=hidden)

    return CompositeTransform(
        [AffineCouplingTransform(mask if i % 2 else 1 - mask, net) for i in range(layers)]
    )


def normflows_couplings(features, *, layers: int = 4, hidden: int = 32):
    """Affine couplings of normflows on the two halves of the lattice, with a list for a chain."""
    from normflows.flows import AffineCouplingBlock, Permute
    from normflows.nets import MLP

    half = features // 2
    steps = []
    for _ in range(layers):
        steps += [
            AffineCouplingBlock(MLP([half, hidden, 2 * (features - half)])),
            Permute(features, mode="swap"),
        ]
    return steps
