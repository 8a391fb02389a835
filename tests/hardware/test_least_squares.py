import numpy as np
import pytest
import scipy.optimize

from hardware.least_squares import nonnegative_least_squares


@pytest.mark.parametrize("seed", range(30))
def test_nonnegative_least_squares_agrees_with_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = int(rng.integers(3, 40)), int(rng.integers(1, 10))
    matrix = rng.normal(size=(rows, columns)) * 10.0 ** rng.integers(-4, 5, columns)
    target = rng.normal(size=rows)
    if seed % 3 == 0:
        target = matrix @ np.maximum(rng.normal(size=columns), 0)
    if seed % 4 == 0:
        matrix[:, -1] = matrix[:, 0]
    expected, distance = scipy.optimize.nnls(matrix, target)
    found = nonnegative_least_squares(matrix, target)
    assert (found >= 0).all()
    assert np.linalg.norm(matrix @ found - target) == pytest.approx(distance, rel=1e-9, abs=1e-9)
    if seed % 4 and rows > columns:
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max(initial=1e-300))


def test_nonnegative_least_squares_gives_zero_where_nothing_positive_helps() -> None:
    matrix = np.array([[1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(nonnegative_least_squares(matrix, np.array([-1.0, 2.0])), [0.0, 0.0])


def test_nonnegative_least_squares_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(3,\)"):
        nonnegative_least_squares(np.eye(2), np.ones(3))
