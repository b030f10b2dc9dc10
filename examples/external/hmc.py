#!/usr/bin/env python3
"""A stand-alone hybrid Monte Carlo program, of which flowmc knows the command line only.

It stands for the code of a group: pure gauge theory with the Wilson action, its own files, its own
random numbers, numpy and nothing else.  Links are U(1) angles or SU(N) matrices in .npy files,
``[..., y, x, mu]`` and ``[..., y, x, mu, row, column]``, or SU(3) matrices in four dimensions in
NERSC files; what is written is of the kind that was read.

    python3 hmc.py IN OUT --beta 6.0 --seed 1 [--defect 0.5] [--trajectories 10]

It prints dH, the acceptance and the plaquette of the last configuration.
"""

import argparse
import itertools

import numpy as np


def shifted(field, mu, by, dimensions):
    """Return f(x + by * mu); the axes of sites are t, z, y, x from the left, behind none."""
    return np.roll(field, -by, axis=dimensions - 1 - mu)


def dagger(matrix):
    return matrix.conj().swapaxes(-1, -2)


class Theory:
    """S = -beta/N sum w Re tr P, with w = product of the coefficients K of the four links.

    K is `defect` on the links of the last direction between its last and its first slice whose
    other coordinates are below `size`, and 1 elsewhere.
    """

    def __init__(self, links, beta, defect, size):
        self.dimensions, self.n = len(links), links.shape[-1]
        self.beta, lattice = beta, links.shape[1:-2]
        coefficient = np.ones((self.dimensions, *lattice))
        box = [slice(size)] * (self.dimensions - 1)
        coefficient[(self.dimensions - 1, -1, *box)] = defect
        self.weights = {}
        for mu, nu in itertools.permutations(range(self.dimensions), 2):
            there, up = self.shift(coefficient[nu], mu), self.shift(coefficient[mu], nu)
            self.weights[mu, nu] = (coefficient[mu] * there * up * coefficient[nu])[..., None, None]

    def shift(self, field, mu, by=1):
        return shifted(field, mu, by, self.dimensions)

    def plaquettes(self, links):
        """Yield Re tr P / N of all sites and its weight, for every plane."""
        for mu, nu in itertools.combinations(range(self.dimensions), 2):
            loop = links[mu] @ self.shift(links[nu], mu)
            loop = loop @ dagger(links[nu] @ self.shift(links[mu], nu))
            yield np.trace(loop, axis1=-2, axis2=-1).real / self.n, self.weights[mu, nu][..., 0, 0]

    def action(self, links):
        return -self.beta * sum(float((loop * w).sum()) for loop, w in self.plaquettes(links))

    def plaquette(self, links):
        return float(np.mean([loop.mean() for loop, _ in self.plaquettes(links)]))

    def force(self, links):
        """Return sum_a T_a dS/dU_a for anti-Hermitian T_a, tr T_a T_b = -1/2; T = i for U(1)."""
        found = np.empty_like(links)
        for mu in range(self.dimensions):
            staples = 0
            for nu in set(range(self.dimensions)) - {mu}:
                weight, there = self.weights[mu, nu], self.shift(links[nu], mu)
                up = there @ dagger(links[nu] @ self.shift(links[mu], nu))
                down = dagger(links[mu] @ there) @ links[nu]
                staples = staples + weight * up + self.shift(weight * down, nu, -1)
            found[mu] = antihermitian(links[mu] @ staples)
        return self.beta * (found if self.n == 1 else found / (2 * self.n))

    def kinetic(self, momentum):
        square = float((np.abs(momentum) ** 2).sum())
        return square / 2 if self.n == 1 else square

    def momentum(self, shape, rng):
        """Draw p_a T_a with p_a of unit variance."""
        if self.n == 1:
            return 1j * rng.standard_normal(shape)
        drawn = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
        return antihermitian(drawn) / np.sqrt(2)


def antihermitian(matrix):
    """Return the anti-Hermitian part, without its trace where there are matrices."""
    part = (matrix - dagger(matrix)) / 2
    n = matrix.shape[-1]
    if n > 1:
        trace = np.trace(part, axis1=-2, axis2=-1)[..., None, None]
        part = part - trace * np.eye(n) / n
    return part


def exponential(momentum):
    if momentum.shape[-1] == 1:
        return np.exp(momentum)
    if momentum.shape[-1] == 2:
        angle = np.sqrt(np.linalg.det(momentum).real)[..., None, None]
        return np.cos(angle) * np.eye(2) + np.sinc(angle / np.pi) * momentum
    values, vectors = np.linalg.eigh(-1j * momentum)
    return (vectors * np.exp(1j * values)[..., None, :]) @ dagger(vectors)


def projected(links):
    """Return the nearest links in the group: rounding has led them away from it."""
    if links.shape[-1] == 1:
        return links / np.abs(links)
    left, _, right = np.linalg.svd(links)
    unitary = left @ right
    phase = np.angle(np.linalg.det(unitary))[..., None, None]
    return unitary * np.exp(-1j * phase / links.shape[-1])


def trajectory(theory, links, momentum, length, steps):
    """Integrate the equations of motion by leapfrog."""
    step = length / steps
    momentum = momentum - step / 2 * theory.force(links)
    for number in range(steps):
        links = exponential(step * momentum) @ links
        momentum = momentum - (step / 2 if number == steps - 1 else step) * theory.force(links)
    return projected(links), momentum


def read(path):
    """Return what the file holds, and a function that writes such a file."""
    with open(path, "rb") as file:
        if file.read(12) == b"BEGIN_HEADER":
            return read_nersc(path), write_nersc
    array = np.load(path)

    def write(path, array):
        with open(path, "wb") as file:
            np.save(file, array)

    return array, write


def read_nersc(path):
    with open(path, "rb") as file:
        header, data = file.read().split(b"END_HEADER\n", 1)
    pairs = [line.split("=", 1) for line in header.decode().splitlines() if "=" in line]
    keys = {key.strip(): value.strip() for key, value in pairs}
    dims = [int(keys[f"DIMENSION_{number}"]) for number in (4, 3, 2, 1)]
    kind = keys["FLOATING_POINT"]
    real = np.dtype(("<" if kind.endswith("LITTLE") else ">") + ("f8" if "64" in kind else "f4"))
    rows = 3 if keys["DATATYPE"].endswith("3x3") else 2
    words = np.frombuffer(data, real.str[0] + "u4").sum(dtype=np.uint64)
    assert int(words) % 2**32 == int(keys["CHECKSUM"], 16), f"{path} is damaged"
    links = np.frombuffer(data, real).astype(float).view(complex).reshape(*dims, 4, rows, 3)
    if rows == 2:
        third = np.cross(links[..., 0, :], links[..., 1, :]).conj()
        links = np.concatenate([links, third[..., None, :]], axis=-2)
    return links


def write_nersc(path, links):
    inside = np.moveaxis(links, 4, 0)
    theory = Theory(inside, 0.0, 1.0, 1)
    data = np.ascontiguousarray(links).astype(">c16").tobytes()
    keys = {
        "HDR_VERSION": "1.0",
        "DATATYPE": "4D_SU3_GAUGE_3x3",
        **{f"DIMENSION_{mu + 1}": links.shape[3 - mu] for mu in range(4)},
        "CHECKSUM": f"{int(np.frombuffer(data, '>u4').sum(dtype=np.uint64)) % 2**32:x}",
        "LINK_TRACE": np.trace(links, axis1=-2, axis2=-1).real.mean() / 3,
        "PLAQUETTE": theory.plaquette(inside),
        "FLOATING_POINT": "IEEE64BIG",
    }
    header = "\n".join(f"{key} = {value}" for key, value in keys.items())
    with open(path, "wb") as file:
        file.write(f"BEGIN_HEADER\n{header}\nEND_HEADER\n".encode() + data)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("destination")
    parser.add_argument("--beta", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--defect", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=None, help="of the defect; all by default")
    parser.add_argument("--trajectories", type=int, default=1)
    parser.add_argument("--length", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=10)
    words = parser.parse_args()

    array, write = read(words.source)
    is_angles = not np.iscomplexobj(array)
    dimensions = array.shape[-1] if is_angles else array.ndim - 3
    matrices = np.exp(1j * array)[..., None, None] if is_angles else array
    links = np.moveaxis(matrices, dimensions, 0)
    theory = Theory(links, words.beta, words.defect, words.size)
    rng = np.random.default_rng(words.seed)
    accepted = 0
    for _ in range(words.trajectories):
        momentum = theory.momentum(links.shape, rng)
        # All steps of one length would have orbits that close.
        length = words.length * (0.9 + 0.2 * rng.random())
        before = theory.kinetic(momentum) + theory.action(links)
        end, last = trajectory(theory, links, momentum, length, words.steps)
        change = theory.kinetic(last) + theory.action(end) - before
        if rng.random() < np.exp(min(0.0, -change)):
            links, accepted = end, accepted + 1
    if accepted:
        found = np.moveaxis(links, 0, dimensions)
        array = np.angle(found[..., 0, 0]) if is_angles else np.ascontiguousarray(found)
    write(words.destination, array)
    print(f"dH = {change:.6g}  ACC = {accepted / words.trajectories:.4g}")
    print(f"plaquette = {theory.plaquette(links):.12g}")


if __name__ == "__main__":
    main()
