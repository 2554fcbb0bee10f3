"""The integrate-and-fire neuron and the ways to differentiate its spike."""

from rsnn_zoo._utils.lazy import lazy

__getattr__ = lazy(
    __name__,
    integrate_fire="SpikingNeuron Rate Relu Surrogate backward_mode model_under",
    modes="ASSG HART MODES PDSG RGA parse_mode",
)
