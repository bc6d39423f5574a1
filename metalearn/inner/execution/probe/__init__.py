"""Is a way of running the inner loop exact for this network? A float64 comparison beats any list of known layers."""

from metalearn.inner.execution.probe.compare import TOLERANCE, Probe

__all__ = ["TOLERANCE", "Probe"]
