"""Least squares without negative solutions: times and costs are never below zero."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def nonnegative_least_squares(matrix: Array, target: Array) -> Array:
    """The x >= 0 that minimizes |matrix @ x - target|.

    Source: Lawson and Hanson, Solving Least Squares Problems, chapter 23 (the active set method).
    Raises:
        ValueError: the shapes do not fit.
    """
    if matrix.ndim != 2 or target.shape != matrix.shape[:1]:
        raise ValueError(f"a matrix (m, n) and a target (m,) are needed, got {matrix.shape} and {target.shape}")
    # Columns of length one, so that the tolerance means the same for all of them.
    lengths = np.linalg.norm(matrix, axis=0)
    scaled = matrix / np.where(lengths > 0, lengths, 1)
    size = matrix.shape[1]
    solution, free = np.zeros(size), np.zeros(size, dtype=bool)
    tolerance = 1e-12 * max(float(np.linalg.norm(target)), 1e-300)
    for _ in range(10 * size):
        gradient = scaled.T @ (target - scaled @ solution)
        gradient[free] = -np.inf
        if free.all() or gradient.max() <= tolerance:
            break
        free[int(gradient.argmax())] = True
        solution = _descend(scaled, target, solution, free)
    return solution / np.where(lengths > 0, lengths, 1)


def _descend(matrix: Array, target: Array, solution: Array, free: npt.NDArray[np.bool_]) -> Array:
    """The best solution on the free columns; what would become negative on the way is fixed at zero, also in `free`."""
    while True:
        goal = np.zeros_like(solution)
        goal[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
        blocked = free & (goal <= 0)
        if not blocked.any():
            return goal
        # Both can be zero where two columns are the same.
        steps = solution[blocked] / np.maximum(solution[blocked] - goal[blocked], 1e-300)
        solution = solution + steps.min() * (goal - solution)
        free &= ~(blocked & (solution <= 1e-15))
        solution = np.where(free, solution, 0.0)
        if not free.any():
            return solution
