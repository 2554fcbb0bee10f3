"""The figure of all entries: every network is on it, however many there are, and figures stand where they belong."""

import pytest

pytest.importorskip("matplotlib")
from rsnn_zoo.report.overview import COLUMNS, overview, plot_overview


def entry(name, dataset="cifar10", worst=("worst-case-v1",)):
    runs = [
        {"protocol": "ensemble-pgd20", "eps": eps / 255, "robust_accuracy": 0.8 / eps, "ci95": [0.7 / eps, 0.9 / eps]}
        for eps in (4, 2)
    ]
    runs += [
        {"protocol": protocol, "eps": 4 / 255, "robust_accuracy": 0.1 / number, "ci95": [0.0, 0.2]}
        for number, protocol in enumerate(worst, 1)
    ]
    return {
        "model": name,
        "dataset": dataset,
        "clean": {"accuracy": 0.9, "ci95": [0.88, 0.92]},
        "runs": runs,
    }


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def test_an_ann_and_its_snns_share_a_panel_and_data_sets_have_rows_of_their_own():
    names = [
        f"resnet20_{data}_{how}_{t}"
        for data in ("cifar10", "digits")
        for how in ("at", "trades")
        for t in ("ann", "t4", "t8")
    ]
    found = panels(overview([entry(name, name.split("_")[1]) for name in names]))
    assert list(found) == [f"{data}: resnet20, {how}" for data in ("cifar10", "digits") for how in ("at", "trades")]
    for axes in found.values():
        lines = [line for line in axes.lines if len(line.get_xdata()) > 1]
        assert len(lines) == 3 and len({line.get_color() for line in lines}) == 3
        assert [list(line.get_ydata()) for line in lines] == [[90.0, 40.0, 20.0]] * 3
        assert [list(line.get_xdata()) for line in lines] == [[0.0, 2.0, 4.0]] * 3


def test_forty_entries_and_names_of_strangers_stay_apart(tmp_path):
    names = [
        f"{net}_cifar10_{how}_{t}"
        for net in ("vgg11", "resnet20", "wrn16_4")
        for how in ("at", "mart", "trades")
        for t in ("ann", "t2", "t4", "t8")
    ]
    reports = [entry(name) for name in [*names, "resnet20_cifar10_at_t4.linf8", "somebodys", "lab/theirs"]]
    figure = overview(reports)
    assert len(panels(figure)) == 12 and {"cifar10: somebodys", "cifar10: resnet20, at, linf8"} <= set(panels(figure))
    assert len({round(axes.get_position().y0, 2) for axes in figure.axes}) >= 12 / COLUMNS
    assert plot_overview(reports, tmp_path / "all.svg").read_text().startswith("<?xml")


def test_of_two_versions_the_newest_is_shown():
    (axes,) = panels(overview([entry("vgg11_cifar10_at_t4", worst=("worst-case-v2", "worst-case-v1"))])).values()
    (point,) = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (4.0, 10.0)


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="nothing to draw"):
        overview([])
