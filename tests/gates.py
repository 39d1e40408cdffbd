"""Random networks for the gates and predictors of a policy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Perceptron = dict[str, NDArray[np.float32]]


def perceptron(
    inputs: int, hidden: int, outputs: int, seed: int = 0, spread: float = 1.0
) -> Perceptron:
    """A network whose outputs vary about as much as ``spread`` over unit-sized inputs."""
    rng = np.random.default_rng([seed, inputs, hidden, outputs])
    shapes = {
        "hidden.weight": ((hidden, inputs), 1.5 / np.sqrt(inputs)),
        "hidden.bias": ((hidden,), 0.1),
        "output.weight": ((outputs, hidden), 1.5 * spread / np.sqrt(hidden)),
        "output.bias": ((outputs,), 0.1 * spread),
    }
    return {
        name: (scale * rng.standard_normal(shape)).astype(np.float32)
        for name, (shape, scale) in shapes.items()
    }


def perceptrons(count: int, inputs: int, hidden: int, outputs: int) -> list[Perceptron]:
    return [perceptron(inputs, hidden, outputs, seed) for seed in range(count)]


def tensors(prefix: str, networks: dict[int, Perceptron]) -> Perceptron:
    """The tensors of a policy file for networks by layer."""
    return {
        f"{prefix}.{layer}.{part}": tensor
        for layer, network in networks.items()
        for part, tensor in network.items()
    }
