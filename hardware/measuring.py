"""A latency model that measures on the spot: what its table lacks is run, noted and answered.

For the machine at hand only, and only while nothing else keeps it busy.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from hardware.graph import DeployModel
from hardware.kernels import FusionRule, Kernel, fuse
from hardware.latency_table import (
    KernelLatency,
    Latency,
    MeasuredTable,
    NetworkRatios,
    Tier,
    UnmeasuredKernel,
)
from hardware.onnx_model import kernel_model, to_onnx
from hardware.ops import Activation
from hardware.runners.onnxruntime import Protocol, Timing, time_model

KERNEL_PROTOCOL = Protocol(warmup_s=0.004, min_runs=15, min_s=0.012)
NETWORK_PROTOCOL = Protocol(warmup_s=0.03, min_runs=25, min_s=0.15)

# What a kernel takes beyond the cost of starting any model at all is never taken to be less.
SHORTEST_MS = 1e-4


@dataclass
class MeasuringModel:
    """Answers from a table and fills it as it is asked.

    The time that the runtime needs to start any model is measured once and taken off every kernel, since a network pays
    it once and not per kernel.
    """

    known: MeasuredTable
    threads: int
    _start_ms: float | None = field(default=None, init=False)

    @property
    def table(self) -> str:
        return self.known.table

    def kernel(self, kernel: Kernel) -> KernelLatency:
        try:
            return self.known.kernel(kernel)
        except UnmeasuredKernel:
            timing = self._time(kernel)
            self.known.add(
                kernel,
                median_ms=max(SHORTEST_MS, timing.median_ms - self._start()),
                spread_ms=timing.spread_ms,
                runs=timing.runs,
            )
            return self.known.kernel(kernel)

    def network(self, total_ms: float, worst_kernel_tier: Tier) -> Latency:
        return self.known.network(total_ms, worst_kernel_tier)

    def compare_with_networks(self, models: Iterable[DeployModel], rules: tuple[FusionRule, ...]) -> NetworkRatios:
        """Times whole networks and notes how they compare with the sums of their kernels: the table's own error.

        The sums come out larger as a rule: a kernel that runs alone has its input brought into the runtime's layout and
        its result out of it again, which happens once in a network.
        """
        ratios, totals_ms = [], []
        for model in models:
            predicted_ms = sum(self.kernel(kernel).value_ms for kernel in fuse(model.graph, rules))
            whole = time_model(to_onnx(model, batch=1), threads=self.threads, protocol=NETWORK_PROTOCOL)
            ratios.append(whole.median_ms / predicted_ms)
            totals_ms.append(predicted_ms)
        found = NetworkRatios(
            networks=len(ratios),
            low_ratio=min(ratios),
            high_ratio=max(ratios),
            fastest_ms=min(totals_ms),
            slowest_ms=max(totals_ms),
        )
        self.known.add_network_ratios(found)
        return found

    def _start(self) -> float:
        if self._start_ms is None:
            smallest = Kernel((Activation("relu"),), ((1, 1, 1),), (1, 1, 1))
            self._start_ms = self._time(smallest).median_ms
        return self._start_ms

    def _time(self, kernel: Kernel) -> Timing:
        return time_model(kernel_model(kernel), threads=self.threads, protocol=KERNEL_PROTOCOL)
