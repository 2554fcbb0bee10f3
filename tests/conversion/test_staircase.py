"""The staircase of a neuron under a constant current, and the threshold that errs least."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsnn_zoo.conversion.staircase import Histogram, best_threshold, staircase
from rsnn_zoo.models.layers import Spiking
from rsnn_zoo.neurons.integrate_fire import integrate_and_fire

pytestmark = pytest.mark.usefixtures("eager")

# --- thresholds -----------------------------------------------------------------------------------------------------


@given(
    reset=st.sampled_from(["hard", "soft"]),
    leak=st.sampled_from([1.0, 0.5]),
    initial=st.sampled_from([0.0, 0.5]),
    steps=st.integers(1, 9),
)
@settings(max_examples=20, deadline=None)
def test_the_staircase_is_what_a_neuron_makes_of_a_constant_current(reset, leak, initial, steps):
    values, how = torch.linspace(-1, 3, 101, dtype=torch.float64), {"reset": reset, "leak": leak, "initial": initial}
    spikes = integrate_and_fire(values[None], torch.ones((), dtype=torch.float64), steps, repeated=True, **how)
    torch.testing.assert_close(staircase(values, Spiking(steps, **how)), spikes.reshape(steps, -1).mean(0))


def test_no_other_threshold_errs_less():
    spiking, histogram = Spiking(4, reset="soft", initial=0.5), Histogram()
    values = torch.rand(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3 * 7
    for part in (values - 1).split(700):
        histogram.add(part)
    values = (values - 1).relu()
    found = best_threshold(histogram, spiking)
    errors = {t: (values - t * staircase(values / t, spiking)).square().sum() for t in [0.1 * i for i in range(1, 70)]}
    assert (values - found * staircase(values / found, spiking)).square().sum() < 1.01 * min(errors.values())
