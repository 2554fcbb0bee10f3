"""A recipe in 16 bits on a processor without instructions for them says so, with the remedy."""

import logging

import pytest
import torch

from rsnn_zoo.training import precision
from rsnn_zoo.training.precision import relative_time, warn_where_slow


def test_float32_is_the_measure():
    assert relative_time("float32") == 1.0


def test_the_ratio_is_that_of_the_measured_times(monkeypatch):
    seconds = {torch.bfloat16: 0.6, torch.float32: 0.2}
    monkeypatch.setattr(precision, "_seconds", lambda dtype, device, repeats: seconds[dtype])
    assert relative_time("bfloat16") == pytest.approx(3.0)


def test_a_measurement_takes_time():
    assert relative_time("bfloat16") > 0


@pytest.mark.parametrize(("ratio", "warned"), [(8.0, True), (1.2, False), (0.4, False)])
def test_only_what_is_slower_is_said(ratio, warned, monkeypatch, caplog):
    seconds = {torch.bfloat16: ratio, torch.float32: 1.0}
    monkeypatch.setattr(precision, "_seconds", lambda dtype, device, repeats: seconds[dtype])
    with caplog.at_level(logging.WARNING):
        warn_where_slow("bfloat16", "cpu")
        warn_where_slow("float32", "cpu")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == warned and all('precision="float32"' in text and "8.0 times" in text for text in said)
