"""A latency model that measures on the spot: what its table lacks is run, noted and answered.

For the machine at hand only, and only while nothing else keeps it busy.
"""

from dataclasses import dataclass, field

from hardware.kernels import Kernel
from hardware.latency_table import KernelLatency, Latency, MeasuredTable, Tier, UnmeasuredKernel
from hardware.onnx_model import kernel_model
from hardware.ops import Activation
from hardware.runners.onnxruntime import Timing, time_model

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

    def _start(self) -> float:
        if self._start_ms is None:
            smallest = Kernel((Activation("relu"),), ((1, 1, 1),), (1, 1, 1))
            self._start_ms = self._time(smallest).median_ms
        return self._start_ms

    def _time(self, kernel: Kernel) -> Timing:
        return time_model(kernel_model(kernel), threads=self.threads)
