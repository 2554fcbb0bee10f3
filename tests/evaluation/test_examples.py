"""Files of adversarial examples: re-checked with nothing but the model; forged and damaged ones are found out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rsnn_zoo
from rsnn_zoo._utils.provenance import digest
from rsnn_zoo.evaluation.evaluation import evaluate
from rsnn_zoo.evaluation.examples import to_uint8, verify_examples
from tests import tiny
from tests.conftest import small_network

pytestmark = pytest.mark.usefixtures("eager")

# --- adversarial examples -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A report and its file of examples."""
    path = tmp_path_factory.mktemp("examples") / "adversarial.safetensors"
    settings = {"chunk": 16, "checks": 0, "adversarial": path, "batch_size": 25}
    return evaluate(
        tiny.network(True), tiny.digits().select(150), "ensemble-pgd3", [8 / 255, 24 / 255], **settings
    ), path


def test_every_claimed_fall_is_in_the_file(examples):
    report, path = examples
    found = load_file(path)
    rows = zip(*(found[key].tolist() for key in ("run", "index", "member")), strict=True)
    claimed = {(number, i, v) for number, run in enumerate(report.runs) for i, v in enumerate(run.verdicts) if v >= 0}
    assert set(rows) == claimed and len(claimed) > 20
    verification = verify_examples(tiny.network(True), path, tiny.digits())
    assert not verification.faults and verification.n == len(claimed) >= verification.n_uint8 > 10
    plain = tiny.network(True)(found["images"]).argmax(1)
    assert (plain != found["labels"]).float().mean() > 0.99  # but for roundings


def forged(examples, tmp_path, change, **said):
    with safe_open(examples[1], "pt") as file:
        about = {key: value for key, value in (file.metadata() | said).items() if value is not None}
    tensors = load_file(examples[1])
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "forged", metadata=about)
    return tmp_path / "forged"


def outside(tensors):
    tensors["images"][0] = (tensors["clean"][0] + 2 * tensors["eps"][0]).clamp(0, 1)


def overexposed(tensors):
    tensors["clean"][0].fill_(1.0), tensors["images"][0].fill_(1.01)


def nan(tensors):
    tensors["images"][0, 0, 0, 0] = float("nan")


def standing(tensors):
    tensors["images"][0] = tensors["clean"][0]


def wrong_anyway(tensors):
    tensors["labels"][0] = (tensors["labels"][0] + 1) % 10


def another_radius(tensors):
    tensors["eps"][0] *= 4


def twice(tensors):
    for rows in tensors.values():
        rows[1] = rows[0].clone()


def eight_bits(tensors):
    tensors["uint8_fallen"].fill_(True)
    tensors["images_uint8"] = (255 * tensors["clean"]).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (outside, "outside the ball or [0, 1]"),
        (overexposed, "outside the ball or [0, 1]"),
        (nan, "outside the ball or [0, 1]"),
        (standing, "not misclassified"),
        (wrong_anyway, "misclassified without any attack"),
        (another_radius, "of a radius that is not its run's"),
        (twice, "listed more than once"),
        (eight_bits, "not misclassified in 8 bits"),
    ],
)
def test_a_false_claim_is_found(examples, tmp_path, change, fault):
    assert fault in verify_examples(tiny.network(True), forged(examples, tmp_path, change)).faults


def nothing(tensors):
    pass


@pytest.mark.parametrize(
    ("change", "about", "said"),
    [
        (nothing, {"model": None}, "model is missing"),
        (nothing, {"model_sha256": None}, "model_sha256 is missing"),
        (nothing, {"chunk": None}, "chunk is missing"),
        (nothing, {"chunk": "0"}, "chunk is 0, must be an integer from 1 to 4,096"),
        (nothing, {"chunk": "4097"}, "chunk is 4097"),
        (nothing, {"chunk": "many"}, "chunk is not usable JSON"),
        (nothing, {"draws": None}, "draws is missing"),
        (nothing, {"draws": "1025"}, "draws is 1025"),
        (nothing, {"runs": None}, "run does not fit"),
        (nothing, {"runs": "{}"}, "runs must be a list"),
        (nothing, {"runs": "[1, 2]"}, r"runs\[0\] must be a JSON object"),
        (nothing, {"runs": "[{}, {}]"}, r"runs\[0\]\.eps is missing"),
        (nothing, {"runs": '[{"eps": NaN}, {"eps": 0.1}]'}, "NaN is not a finite number"),
        (lambda tensors: tensors["run"].fill_(2), {}, "run does not fit"),
        (lambda tensors: tensors["run"].fill_(-1), {}, "run does not fit"),
        (lambda tensors: tensors.pop("member"), {}, "damaged: .*member"),
        (lambda tensors: tensors.update(labels=tensors["labels"].float()), {}, "labels does not fit"),
        (lambda tensors: tensors.update(index=tensors["index"][1:]), {}, "index does not fit"),
        (lambda tensors: tensors.update(eps=tensors["eps"][:, None]), {}, "eps does not fit"),
        (lambda tensors: tensors.update(uint8_fallen=tensors["uint8_fallen"].long()), {}, "uint8_fallen does not fit"),
        (lambda tensors: tensors.update(clean=tensors["clean"][..., 1:]), {}, "clean does not fit"),
        (lambda tensors: tensors.update(images=torch.tensor(0.5)), {}, "images, .*, member does not fit"),
        (lambda tensors: tensors.update(images_uint8=tensors["images_uint8"].flatten(1)), {}, "images_uint8 does not"),
    ],
)
def test_a_malformed_file_is_refused(examples, tmp_path, change, about, said):
    about = {"model_sha256": "0" * 64} | about if "model" in about else about
    with pytest.raises(ValueError, match=said):
        verify_examples(tiny.network(True), forged(examples, tmp_path, change, **about))


@pytest.mark.parametrize(
    ("about", "said"),
    [({"chunk": "4096"}, "GiB of memory"), ({"draws": "1024"}, "passes or .* a verdict")],
)
def test_a_file_does_not_choose_what_is_spent_on_it(examples, tmp_path, monkeypatch, about, said):
    """Chunk and draws within their bounds; what is too much is a small number here, so that nothing large is tried."""
    monkeypatch.setattr("rsnn_zoo.evaluation.costs.MAX_MEMORY", 2**20)
    monkeypatch.setattr("rsnn_zoo.evaluation.costs.MAX_PASSES", 10**4)
    path = forged(examples, tmp_path, nothing, **about)
    with pytest.raises(ValueError, match=f"would take .*{said}.*: allow it by allow_cost"):
        verify_examples(tiny.network(True), path)
    assert verify_examples(tiny.network(True), examples[1]).n  # as it was made
    monkeypatch.setattr("rsnn_zoo.evaluation.examples.ModelVictim.fallen", lambda self, x, y: torch.ones(len(x)) > 0)
    assert verify_examples(tiny.network(True), path, allow_cost=True).n


def test_images_of_another_size_are_refused(examples, tmp_path):
    def crop(tensors):
        tensors.update((key, tensors[key][..., 1:]) for key in ("images", "images_uint8", "clean"))

    for model, data in ((small_network(), None), (tiny.network(True), tiny.digits())):
        with pytest.raises(ValueError, match=r"holds images \(1, 8, 7\), not \(1, 8, 8\)"):
            verify_examples(model, forged(examples, tmp_path, crop, model_sha256=digest(model)), data)


def test_images_of_another_data_set_are_found(examples):
    other = rsnn_zoo.load_dataset("digits", "train").select(360)
    assert "not of this data set" in verify_examples(tiny.network(True), examples[1], other).faults


def test_other_weights_and_other_files_are_refused(examples, tmp_path):
    with pytest.raises(ValueError, match="other weights"):
        verify_examples(tiny.network(False), examples[1])
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="no adversarial examples"):
        verify_examples(tiny.network(True), tmp_path / "other")
    (tmp_path / "cut").write_bytes(examples[1].read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        verify_examples(tiny.network(True), tmp_path / "cut")
    with pytest.raises(FileNotFoundError):
        verify_examples(tiny.network(True), tmp_path / "none")


def test_no_falls_make_an_empty_file(tmp_path):
    data = tiny.digits().select(5)
    evaluate(tiny.network(), data, "fgsm", 0.0, checks=0, adversarial=tmp_path / "none")
    assert verify_examples(tiny.network(), tmp_path / "none", data).n == 0


@given(
    st.lists(st.tuples(st.integers(0, 255), st.floats(-1, 1)), min_size=1, max_size=20),
    st.integers(1, 64),
    st.booleans(),
)
@settings(deadline=None)
def test_8_bits_stay_in_the_ball_and_near(pixels, k, sixteenths):
    level = torch.tensor([float(level) for level, _ in pixels]).view(1, 1, 1, -1)
    clean = (level / 16).round().clamp(0, 16) / 16 if sixteenths else level / 255
    eps = torch.tensor([k / 255], dtype=torch.float64)
    shift = torch.tensor([shift for _, shift in pixels]).view(1, 1, 1, -1)
    adversarial = (clean + shift * k / 255).clamp(0, 1)
    found = to_uint8(adversarial, clean, eps).double() / 255
    assert (found - clean).abs().max() <= k / 255 + 1e-6
    assert (found - adversarial).abs().max() <= 1 / 255 + 1e-6
