"""What is missing between networks and their kernels goes to the kernels or to the kind of network it belongs to."""

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from hardware import whole_fit
from hardware.latency_table import KernelSums
from hardware.whole_fit import MEGABYTE, Learnt, NetworkFactor, Prior, kernel_factors, network_factor, position

KEYS = [f"conv({channels}x8x8>{out} k1x1 s1 p0x0 g1)" for channels in (8, 32, 128) for out in (16, 64, 256)] + [
    f"add({channels}x8x8,{channels}x8x8)" for channels in (8, 16, 32, 64)
]

PRIOR = Prior(amplitude=1.0, noise_sd=0.02)


def heavy(total_ms: float, megabytes: float) -> KernelSums:
    return KernelSums(total_ms, weight_bytes=int(megabytes * MEGABYTE), moved_bytes=MEGABYTE)


def networks(truth: dict[str, float], *, longer=lambda sums: 1.0, count: int = 200) -> list[Learnt]:
    """Networks of kernels that take 1 to 3 ms by the table and `truth` times as long indeed."""
    rng = np.random.default_rng(7)
    table_ms = {key: float(rng.uniform(1, 3)) for key in KEYS}
    found = []
    for _ in range(count):
        keys = list(dict.fromkeys(map(str, rng.choice(KEYS, size=6))))
        megabytes = float(rng.uniform(0.2, 20.0))
        sums = heavy(sum(table_ms[key] for key in keys), megabytes)
        whole_ms = (sum(table_ms[key] * truth.get(key, 1.0) for key in keys) + 0.5) * longer(sums)
        found.append(Learnt(whole_ms, sums, 0.5, {key: table_ms[key] for key in keys}))
    return found


def test_one_kernel_gets_what_it_alone_lacks() -> None:
    factors, _ = kernel_factors(networks({KEYS[4]: 1.08}))
    assert factors[KEYS[4]] == pytest.approx(1.08, abs=0.02)
    assert all(factor == pytest.approx(1.0, abs=0.02) for key, factor in factors.items() if key != KEYS[4])


def test_a_family_gets_what_all_of_it_lacks_with_members_that_few_networks_have() -> None:
    every = networks({key: 1.1 for key in KEYS if key.startswith("conv")})
    rare = KEYS[0]
    once = [each for each in every if rare in each.by_kernel_ms][:1]
    factors, _ = kernel_factors([each for each in every if rare not in each.by_kernel_ms] + once)
    assert factors[rare] == pytest.approx(1.1, abs=0.02)
    assert factors["add(8x8x8,8x8x8)"] == pytest.approx(1.0, abs=0.02)


def test_a_network_that_something_disturbed_teaches_nothing() -> None:
    quiet = networks({})
    disturbed = [replace(each, whole_ms=1.5 * each.whole_ms) for each in quiet[:40]]
    assert kernel_factors([*quiet[40:], *disturbed]) == kernel_factors(quiet[40:])
    assert network_factor([*quiet[40:], *disturbed], PRIOR) == network_factor(quiet[40:], PRIOR)


@pytest.mark.parametrize("noise", [0.005, 0.02])
def test_how_much_timings_err_is_heard_from_them(noise: float) -> None:
    rng = np.random.default_rng(3)
    quiet = networks(dict.fromkeys(KEYS[:2], 1.06))
    noisy = [replace(each, whole_ms=each.whole_ms * math.exp(noise * rng.standard_normal())) for each in quiet]
    factors, prior = kernel_factors(noisy)
    assert prior.noise_sd == pytest.approx(noise, rel=0.5)
    assert factors[KEYS[0]] == pytest.approx(1.06, abs=0.02)


def test_where_there_is_nothing_but_noise_kernels_keep_their_times() -> None:
    rng = np.random.default_rng(3)
    noisy = [replace(each, whole_ms=each.whole_ms * math.exp(0.03 * rng.standard_normal())) for each in networks({})]
    factors, prior = kernel_factors(noisy)
    assert all(factor == pytest.approx(1.0, abs=0.01) for factor in factors.values())
    assert prior.noise_sd == 0.03


def test_networks_heavy_in_weights_take_as_much_longer_as_those_seen_and_others_stay() -> None:
    def longer(sums: KernelSums) -> float:
        return 1.06 if sums.weight_bytes > 10 * MEGABYTE else 1.0

    factor = network_factor(networks({}, longer=longer), PRIOR)
    for megabytes, expected in ((1.0, 1.0), (4.0, 1.0), (16.0, 1.06)):
        sums = heavy(11.0, megabytes)
        assert factor(sums, 0.5) == pytest.approx(expected, abs=0.012)
    far = heavy(11e4, 10_000)
    assert factor(far, 0.5) == pytest.approx(1.0, abs=1e-3), "where nothing is known nothing is corrected"


def test_with_a_centre_for_every_network_it_is_the_gaussian_process_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt = networks({}, longer=lambda sums: 1 + 0.03 * math.sin(sums.weight_bytes / MEGABYTE), count=50)
    monkeypatch.setattr(whole_fit, "CENTRES", len(learnt))
    factor = network_factor(learnt, PRIOR)
    at = np.array([position(each.sums, each.overhead_ms) for each in learnt])
    spread = at.std(axis=0)
    at = (at - at.mean(axis=0)) / np.where(spread < 1e-9, 1.0, spread)
    shape = ConstantKernel(whole_fit.NETWORK_SD**2) * RBF(whole_fit.NETWORK_LENGTH)
    process = GaussianProcessRegressor(shape, alpha=PRIOR.noise_sd**2, optimizer=None)
    expected = process.fit(at, [each.log_ratio for each in learnt]).predict(at)
    found = [math.log(factor(each.sums, each.overhead_ms)) for each in learnt]
    assert found == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_networks_correct_nothing(count: int) -> None:
    few = networks({}, count=count)
    assert set(kernel_factors(few)[0].values()) <= {1.0}
    assert network_factor(few, PRIOR) == NetworkFactor()
    assert NetworkFactor()(KernelSums(1.0), 0.5) == 1.0
