"""What is put into traces comes out of them: times of kernels, the start, the price of watching and of cold weights."""

import math
from dataclasses import replace

import numpy as np
import pytest

from hardware.kernels import REUSE_CLASSES, REUSE_EDGES
from hardware.latency_table import KernelSums, of_class
from hardware.table_fit import KNOTS_MB, NO_STEPS, KernelTrace, NetworkTrace, Overheads, TableFit, fit_table
from hardware.whole_fit import MEGABYTE

START_MS, WATCHING_MS = 0.05, 0.004


# How often a map of 8x8 uses each weight of a pointwise convolution: at 64 positions.
POINTWISE = REUSE_EDGES.index(64)


def growth(weights_mb: float) -> float:
    """Nothing up to 2 MB of weights; pointwise convolutions then take 1.5 times as long at 4 and 2.5 at 8 MB."""
    return math.exp(float(np.interp(weights_mb, [2.0, 4.0, 8.0], [0.0, math.log(1.5), math.log(2.5)])))


def reuse_of(key: str) -> int:
    return POINTWISE if "k1x1" in key else REUSE_CLASSES - 1


def kernels(rng: np.random.Generator) -> dict[str, tuple[float, int]]:
    """Warm time and bytes of weights, by key."""
    found = {}
    for channels in (8, 16, 32, 64, 128, 256, 512):
        for out in (24, 96, 384, 768):
            key = f"conv({channels}x8x8>{out} k1x1 s1 p0x0 g1)+relu"
            found[key] = (float(rng.uniform(0.02, 0.4)), 4 * out * (channels + 1))
        found[f"conv({channels}x8x8>{channels} k3x3 s1 p1x1 g{channels})"] = (
            float(rng.uniform(0.01, 0.1)),
            40 * channels,
        )
        found[f"add({channels}x8x8,{channels}x8x8)"] = (float(rng.uniform(0.005, 0.02)), 0)
    return found


def networks(
    known: dict[str, tuple[float, int]], rng: np.random.Generator, *, count: int = 120, noise: float = 0.0
) -> list[NetworkTrace]:
    """Small and large networks; every clock errs by so large a share."""

    def heard(ms: float) -> float:
        return ms * float(np.exp(noise * rng.standard_normal()))

    traces = []
    for index in range(count):
        keys = [str(key) for key in rng.choice(list(known), size=int(rng.integers(4, 26)))]
        grown = growth(sum(known[key][1] for key in keys) / MEGABYTE)
        true_ms = [known[key][0] * (grown if reuse_of(key) == POINTWISE else 1.0) for key in keys]
        launches = [int(rng.integers(1, 4)) for _ in keys]
        traced = [
            KernelTrace(key, heard(ms) + count_ * WATCHING_MS, count_, known[key][1], 0, reuse_of(key))
            for key, ms, count_ in zip(keys, true_ms, launches, strict=True)
        ]
        traces.append(NetworkTrace(f"n{index}", heard(START_MS + sum(true_ms)), tuple(traced)))
    return traces


def true_ms(known: dict[str, tuple[float, int]], trace: NetworkTrace) -> float:
    grown = growth(trace.weight_bytes / MEGABYTE)
    return START_MS + sum(known[each.key][0] * (grown if each.reuse == POINTWISE else 1.0) for each in trace.kernels)


def predicted_ms(fit: TableFit, trace: NetworkTrace) -> float:
    return fit.network_ms(trace.sums({key: row.median_ms for key, row in fit.rows.items()}))


def errors(fit: TableFit, known: dict[str, tuple[float, int]]) -> list[float]:
    """Of networks that the fit has not seen."""
    others = networks(known, np.random.default_rng(99))
    return [abs(predicted_ms(fit, trace) / true_ms(known, trace) - 1) for trace in others]


def found_growth(fit: TableFit, weights_mb: float) -> float:
    return float(fit.overheads.growth_factors(int(weights_mb * MEGABYTE))[POINTWISE])


@pytest.fixture(scope="module")
def known() -> dict[str, tuple[float, int]]:
    return kernels(np.random.default_rng(0))


def test_exact_traces_give_back_what_they_were_made_of(known: dict[str, tuple[float, int]]) -> None:
    traces = networks(known, np.random.default_rng(1))
    weights_mb = [trace.weight_bytes / MEGABYTE for trace in traces]
    assert min(weights_mb) < 0.25
    assert sum(each > 4 for each in weights_mb) < 12, "the dearest weights are rare"
    fit = fit_table(traces)
    assert fit.overheads.start_ms == pytest.approx(START_MS, rel=1e-6)
    assert fit.overheads.watching_ms == pytest.approx(WATCHING_MS, rel=1e-6)
    for key, row in fit.rows.items():
        assert row.median_ms == pytest.approx(known[key][0], rel=1e-3), key
        assert row.spread_ms == pytest.approx(0, abs=5e-4)
        assert row.networks == sum(any(each.key == key for each in trace.kernels) for trace in traces)
    for weights_mb_ in (1.0, 2.0, 4.0, 8.0, 12.0):
        assert found_growth(fit, weights_mb_) == pytest.approx(growth(weights_mb_), rel=1e-2)
    assert fit.networks == len(traces)
    assert max(errors(fit, known)) < 5e-3


def test_noise_moves_networks_by_less_than_itself(known: dict[str, tuple[float, int]]) -> None:
    fit = fit_table(networks(known, np.random.default_rng(1), noise=0.03))
    assert fit.overheads.start_ms == pytest.approx(START_MS, rel=0.25)
    assert fit.overheads.watching_ms == pytest.approx(WATCHING_MS, rel=0.25)
    assert found_growth(fit, 8.0) == pytest.approx(2.5, rel=0.1)
    assert np.mean(errors(fit, known)) < 0.006
    # The heaviest networks are rare among those that were learnt from.
    assert max(errors(fit, known)) < 0.06
    spreads = [row.spread_ms / row.median_ms for key, row in fit.rows.items() if key.startswith("conv")]
    # 1.35 standard deviations lie between the quartiles of noise.
    assert np.median(spreads) == pytest.approx(1.35 * 0.03, rel=0.3)


def test_without_heavy_networks_no_weight_costs_more(known: dict[str, tuple[float, int]]) -> None:
    light = [each for each in networks(known, np.random.default_rng(2)) if each.weight_bytes < 2 * MEGABYTE]
    fit = fit_table(light)
    assert np.array(fit.overheads.growth) == pytest.approx(0, abs=1e-9)


def test_small_networks_say_what_watching_them_added(known: dict[str, tuple[float, int]]) -> None:
    rng = np.random.default_rng(5)
    small = {key: (0.02 * warm_ms, weights) for key, (warm_ms, weights) in known.items()}

    def watched(trace: NetworkTrace) -> NetworkTrace:
        more_ms = WATCHING_MS * 0.1 * float(rng.standard_normal())
        told = (replace(each, traced_ms=each.traced_ms + each.launches * more_ms) for each in trace.kernels)
        return replace(trace, kernels=tuple(told))

    traces = [watched(trace) for trace in networks(small, np.random.default_rng(1))]
    adding_ms = [sum(WATCHING_MS * each.launches for each in trace.kernels) / trace.whole_ms for trace in traces]
    assert np.median(adding_ms) > 0.5, "watching takes as long as the networks"
    fit = fit_table(traces)
    assert np.mean(errors(fit, small)) < 0.003
    # A kernel takes the same in every network; what is left of watching makes it look as if it did not.
    assert np.median([row.spread_ms / row.median_ms for row in fit.rows.values()]) < 0.06


@pytest.mark.parametrize("what", ["whole", "kernels"])
def test_a_disturbed_network_moves_nothing(known: dict[str, tuple[float, int]], what: str) -> None:
    traces = networks(known, np.random.default_rng(1), noise=0.01)

    def disturbed(trace: NetworkTrace) -> NetworkTrace:
        if what == "whole":
            return replace(trace, whole_ms=1.5 * trace.whole_ms)
        return replace(trace, kernels=tuple(replace(each, traced_ms=2 * each.traced_ms) for each in trace.kernels))

    broken = [disturbed(trace) if index % 8 == 3 else trace for index, trace in enumerate(traces)]
    quiet = [trace for index, trace in enumerate(traces) if index % 8 != 3]
    found, expected = fit_table(broken), fit_table(quiet)
    assert found.rows.keys() == expected.rows.keys()
    for key, row in expected.rows.items():
        assert found.rows[key].median_ms == pytest.approx(row.median_ms, rel=0.02), key
        quiet_ones = sum(any(each.key == key for each in trace.kernels) for trace in quiet)
        assert found.rows[key].networks <= quiet_ones, "nothing is counted that is not used"
    assert found.networks <= len(quiet)
    assert max(errors(found, known)) < 0.015


def test_factors_of_kernels_take_up_what_the_runtimes_clock_misses(known: dict[str, tuple[float, int]]) -> None:
    def underheard(trace: NetworkTrace) -> NetworkTrace:
        told = (
            replace(each, traced_ms=each.traced_ms - 0.05 * known[each.key][0]) if "g1)" in each.key else each
            for each in trace.kernels
        )
        return replace(trace, kernels=tuple(told))

    fit = fit_table([underheard(trace) for trace in networks(known, np.random.default_rng(1))])
    for family in ("k1x1", "k3x3"):
        found = [row.median_ms / known[key][0] for key, row in fit.rows.items() if family in key]
        assert np.mean(found) == pytest.approx(1.0, abs=0.02), "5 % were not heard of the one, none of the other"
    assert np.mean(errors(fit, known)) < 0.005


def test_a_kernel_that_is_faster_than_the_clock_is_never_free() -> None:
    fast = KernelTrace("flatten(8x1x1)", WATCHING_MS / 2, 1, 0, 0)
    known = kernels(np.random.default_rng(0))
    traces = [replace(trace, kernels=(*trace.kernels, fast)) for trace in networks(known, np.random.default_rng(1))]
    assert fit_table(traces).rows["flatten(8x1x1)"].median_ms > 0


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_networks_say_nothing(count: int) -> None:
    traces = networks(kernels(np.random.default_rng(0)), np.random.default_rng(1), count=count)
    with pytest.raises(ValueError, match=f"at least two networks must be traced, got {count}"):
        fit_table(traces)


def vectors_and_maps(name: str, weights_mb: float, moved_mb: float) -> NetworkTrace:
    """Vectors double from 8 MB that pass, weights and half of what is moved, to 16.

    Moving a megabyte costs 0.04 ms more from 16 MB that are moved to 24.
    """
    longer = 2 ** float(np.interp(weights_mb + moved_mb / 2, [8.0, 16.0], [0.0, 1.0]))
    dearer_ms = float(np.interp(moved_mb, [16.0, 24.0], [0.0, 0.04]))
    found = [
        KernelTrace(f"conv({size}x1x1>64 k1x1 s1 p0x0 g1)", 1e-3 * size * longer, 1, 256 * size, 0, 0)
        for size in (64, 128, 256, 512)
    ]
    found += [
        KernelTrace(
            f"add({size}x32x32,{size}x32x32)", 1e-2 * size + dearer_ms * 12 * size / 1024, 1, 0, 12 * 1024 * size
        )
        for size in (64, 128, 256, 512)
    ]
    weight_bytes = int(weights_mb * MEGABYTE) - sum(each.weight_bytes for each in found)
    moved_bytes = int(moved_mb * MEGABYTE) - sum(each.moved_bytes for each in found)
    left_ms = 1.0 + dearer_ms * moved_bytes / MEGABYTE
    found.append(KernelTrace("conv(32x8x8>32 k1x1 s1 p0x0 g1)", left_ms, 1, weight_bytes, moved_bytes))
    return NetworkTrace(name, sum(each.traced_ms for each in found), tuple(found))


def test_kernels_that_use_each_weight_once_and_large_maps_take_longer_in_larger_networks() -> None:
    rng = np.random.default_rng(3)
    fit = fit_table([vectors_and_maps(f"n{n}", rng.uniform(0.3, 8.0), rng.uniform(12.0, 40.0)) for n in range(150)])
    for weights_mb, moved_mb in ((1.0, 13.0), (7.0, 13.0), (1.0, 20.0), (4.0, 20.0), (1.0, 38.0), (8.0, 38.0)):
        other = vectors_and_maps("other", weights_mb, moved_mb)
        assert predicted_ms(fit, other) == pytest.approx(other.whole_ms, rel=0.015), (weights_mb, moved_mb)
    # Of two networks of the same kernels, in which values cost the same.
    longer = [fit.overheads.growth_factors(int(passing_mb * MEGABYTE))[0] for passing_mb in (7.5, 12.0, 20.0)]
    assert longer[1] / longer[0] == pytest.approx(2**0.5, rel=0.05)
    assert longer[2] / longer[0] == pytest.approx(2.0, rel=0.05)


def test_what_a_network_takes_beyond_its_kernels_by_hand() -> None:
    # Kernels of the first class take twice as long on the way from 1 to 2 MB of weights; moving a megabyte costs 0.1 ms
    # more on the way from 1 to 2 MB that are moved, 0.2 more on that from 2 to 4.
    doubles = tuple({1.0: math.log(2.0)}.get(knot, 0.0) for knot in KNOTS_MB[:-1])
    moving = tuple({1.0: 0.1, 2.0: 0.2}.get(knot, 0.0) for knot in KNOTS_MB[:-1])
    overheads = Overheads(0.5, 0.0, (doubles, *[NO_STEPS] * (REUSE_CLASSES - 1)), moving)
    for moved_mb, expected in ((0, 0.5), (1, 0.5), (1.5, 0.5 + 1.5 * 0.05), (2, 0.7), (3, 0.5 + 3 * 0.2), (40, 12.5)):
        assert overheads.network_ms(KernelSums(moved_bytes=int(moved_mb * MEGABYTE))) == pytest.approx(expected)
    for weights_mb, factor in ((0, 1.0), (1, 1.0), (1.5, 2**0.5), (2, 2.0), (40, 2.0)):
        sums = KernelSums(4.0, (3.0, 1.0, *[0.0] * (REUSE_CLASSES - 2)), int(weights_mb * MEGABYTE))
        assert overheads.network_ms(sums) == pytest.approx(0.5 + 3.0 * (factor - 1)), "the second class does not grow"
    # 1.5 MB of weights, and half a megabyte that is written once and read once; 1 MB moved costs nothing more.
    both = KernelSums(1.0, of_class(1.0, 0), 3 * MEGABYTE // 2, MEGABYTE)
    assert overheads.network_ms(both) == pytest.approx(0.5 + 1.0)
