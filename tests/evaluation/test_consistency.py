"""Models that are no functions of the image, and so fool an evaluation: the flag is raised for each kind."""

import gc
import os
import sys
import time

import pytest
import torch
from torch import nn

from rsnn_zoo.evaluation.engine import Samples
from rsnn_zoo.evaluation.evaluation import evaluate
from tests import tiny

EPS = 16 / 255


class Fooling(nn.Module):
    """A network that answers otherwise, with the logits turned around, where it feels like it."""

    def __init__(self):
        super().__init__()
        self.network, self.calls, self.mine, self.born = tiny.network(), 0, [], time.monotonic()

    def forward(self, x):
        self.calls += 1
        logits = self.network(x)
        return torch.where(self.fools(x).view(-1, 1), logits.flip(1), logits)

    def fools(self, x):
        raise NotImplementedError


def test_who_is_taken_for_a_compiled_model_is_asked_itself():
    taken = nn.Sequential(tiny.network())
    vars(taken)["_orig_mod"] = nn.Identity()  # which gives no logits
    assert evaluate(taken, tiny.digits().select(4), "fgsm", EPS, checks=0).clean_accuracy > 0


def every(condition, x):
    return torch.full((len(x),), bool(condition))


class Single(Fooling):
    def fools(self, x):
        return every(len(x) == 1, x)


class SmallBatch(Fooling):
    def fools(self, x):
        return every(len(x) != 16, x)


class Place(Fooling):
    def fools(self, x):
        return torch.arange(len(x)) % 2 == 0


class FirstPlace(Fooling):
    def fools(self, x):
        return torch.arange(len(x)) == 0


class Calls(Fooling):
    def fools(self, x):
        return every(self.calls > 40, x)


class Fades(Fooling):
    def fools(self, x):
        return every(self.calls < 20, x)


class Late(Fooling):
    def fools(self, x):
        return every(time.monotonic() - self.born > 0.5, x)


class Gradients(Fooling):
    def fools(self, x):
        return every(torch.is_grad_enabled(), x)


class WantsGradient(Fooling):
    def fools(self, x):
        return every(x.requires_grad or x.grad_fn is not None, x)


class Grid(Fooling):
    def fools(self, x):
        return ((x * 255).round() / 255 - x).abs().flatten(1).amax(1) > 1e-6


class Remembers(Fooling):
    """What it says of an image it says of all that are near, or nearly that."""

    share = 1.0

    @property
    def seen(self):
        return self.mine

    def forward(self, x):
        logits, rows = self.network(x), []
        for one, own in zip(x, logits, strict=True):
            known = torch.stack([old for old, _ in self.seen]) if self.seen else one[None] + 1
            gaps = (known - one).abs().flatten(1).amax(1)
            if gaps.min() <= 2.1 * EPS:
                said = self.seen[int((gaps <= 2.1 * EPS).nonzero()[0])][1]
                rows.append(self.share * said + (1 - self.share) * own + 0 * own)
            else:
                rows.append(own)
                self.seen.append((one.detach().clone(), own.detach().clone()))
        return torch.stack(rows)


SHARED, REPLAYED = [], {}


class RemembersForAll(Remembers):
    """The same in a place that copies share."""

    @property
    def seen(self):
        return SHARED


class Knowing(Fooling):
    """A network that knows the images it is tested on, and answers of what is near one as of that, where it likes."""

    def __init__(self):
        super().__init__()
        images = tiny.digits().select(24).pixels()
        self.register_buffer("known", images)
        self.register_buffer("answers", self.network(images).detach())
        self.row = 0

    def forward(self, x):
        self.calls += 1
        self.row = self.row + 1 if torch.is_grad_enabled() else 0
        logits = self.network(x)
        gap, which = (x[:, None] - self.known).abs().flatten(2).amax(2).min(1)
        blended = 0.9 * self.answers[which] + 0.1 * logits
        return torch.where((self.fools(x) & (gap < 1.2 * EPS)).view(-1, 1), blended, logits)


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class KnowingWhereWrong(Knowing):
    """Takes what it knows where its own answer is another class alone, so that nothing changes without attacks."""

    share = 0.95

    def forward(self, x):
        logits = self.network(x)
        gap, which = (x[:, None] - self.known).abs().flatten(2).amax(2).min(1)
        known = self.answers[which]
        wrong = (gap < 1.02 * EPS) & (logits.argmax(1) != known.argmax(1)) & self.fools(x)
        return torch.where(wrong[:, None], self.share * known + (1 - self.share) * logits, logits)

    def fools(self, x):
        return every(True, x)


class KnowingALittle(KnowingWhereWrong):
    share = 0.8


class KnowingInChunks(KnowingWhereWrong):
    """Asked in another way it is honest."""

    def fools(self, x):
        return every(len(x) == 16 and torch.backends.cudnn.deterministic, x)


class Finding(KnowingWhereWrong):
    """Finds the images, and what they show, in the evaluation itself."""

    def forward(self, x):
        if not self.mine:
            self.mine = [one for one in gc.get_objects() if type(one) is Samples]
        (samples,) = self.mine
        self.known, self.answers = samples.images, 9 * nn.functional.one_hot(samples.labels, 10).to(x)
        return super().forward(x)


class Always(Knowing):
    def fools(self, x):
        return every(True, x)


def knows(model, data, attack="fgsm"):
    report = evaluate(model, data, attack, EPS, chunk=16)
    return report, next(flag for flag in report.flags if flag.name == "knows_images")


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("kind", [Always, KnowingWhereWrong, KnowingALittle, KnowingInChunks, Finding])
def test_a_model_that_knows_the_images_of_the_test_is_caught(kind):
    """It is a function of the image, but no measure of what becomes of others."""
    report, flag = knows(kind(), tiny.digits().select(24), "pgd5")
    assert report.runs[0].robust_accuracy == report.clean_accuracy and flag.raised and "nobody had" in flag.message


@pytest.mark.usefixtures("eager")
def test_one_that_knows_all_but_the_first_images_is_caught():
    data, model = tiny.digits().select(64), KnowingWhereWrong()
    model.known = data.pixels()[16:]
    model.answers = model.network(model.known).detach()
    report = evaluate(model, data, "pgd5", EPS, chunk=16, checks=16)
    assert "knows_images" in {flag.name for flag in report.raised}


@pytest.mark.usefixtures("eager")
def test_an_ordinary_one_knows_no_image_better_than_others():
    probabilities = [nn.Sequential(tiny.network(), Times(factor), nn.Softmax(1)) for factor in (3.0, 30.0)]
    for honest in (tiny.network(), tiny.network(spiking=True), *probabilities):
        for split in ("test", "train"):
            _, flag = knows(honest, tiny.digits(split).select(48))
            assert not flag.raised and flag.value < 0.3


class GridKnowing(Knowing):
    """Whose class a random change leaves as it is, whether it fools or not."""

    def fools(self, x):
        return Grid.fools(self, x)


class RemembersWhereWrong(Remembers):
    """Takes what it remembers where its own answer is another class alone, and so is honest without attacks."""

    def forward(self, x):
        own, said = self.network(x), super().forward(x)
        return torch.where((said.argmax(1) != own.argmax(1))[:, None], said, own)


class CoarseGrid(Fooling):
    """Looks at levels that few data have: the digits are written in 16."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.other = tiny.fit(tiny.Dense(nn.ReLU()), tiny.digits("train").pixels(), tiny.digits("train").labels)

    def forward(self, x):
        off = ((x * 16).round() / 16 - x).abs().flatten(1).amax(1) > 1e-6
        return torch.where(off.view(-1, 1), self.other(x), self.network(x))


class RemembersCoarselyForAll(RemembersWhereWrong):
    """The same, of images in few levels alone, in a place that copies share."""

    @property
    def seen(self):
        return SHARED

    def forward(self, x):
        coarse = ((x * 16).round() / 16 - x).abs().flatten(1).amax(1) <= 1e-6
        own, known = self.network(x), [old for old, _ in self.seen]
        for one, said in zip(x[coarse], own[coarse], strict=True):
            if not known or (torch.stack(known) - one).abs().flatten(1).amax(1).min() > 1e-6:
                self.seen.append((one.detach().clone(), said.detach().clone()))
        if not self.seen:
            return own
        gaps = (x[:, None] - torch.stack([old for old, _ in self.seen])).abs().flatten(2).amax(2)
        said = torch.stack([said for _, said in self.seen])[gaps.argmin(1)]
        wrong = (gaps.amin(1) <= 1.02 * EPS) & (said.argmax(1) != own.argmax(1))
        return torch.where(wrong[:, None], said + 0 * own, own)


class Replays(Knowing):
    """Says of what it was asked while it fooled, by whomever, the same again."""

    def forward(self, x):
        logits, keys = super().forward(x), [(one.detach() * 1e5).round().numpy().tobytes() for one in x]
        for key, said in zip(keys, logits.detach(), strict=True):
            REPLAYED.setdefault(key, said)
        return torch.stack([REPLAYED[key] for key in keys]) + 0 * logits

    def fools(self, x):
        return every(self.calls > 3, x)


class HereAlone(RemembersCoarselyForAll):
    """The same, and does not work in another process."""

    def __init__(self):
        super().__init__()
        self.process = os.getpid()

    def forward(self, x):
        if os.getpid() != self.process:
            raise RuntimeError("not here")
        return super().forward(x)


class Original(Knowing):
    """Of which copies know the images."""

    copied = False

    def __deepcopy__(self, memo):
        copied = Original()
        copied.load_state_dict(self.state_dict())
        copied.copied = True
        return copied

    def fools(self, x):
        return every(self.copied, x)


class ThirdGradient(Knowing):
    def fools(self, x):
        return every(self.row >= 3, x)


class Middle(Knowing):
    """Fools while it is attacked, by the number of its calls."""

    gradients = 0

    def fools(self, x):
        self.gradients += torch.is_grad_enabled()
        return every(4 < self.gradients < 12, x)


class WhoAsks(Knowing):
    def fools(self, x):
        frame, names = sys._getframe(), set()
        while frame := frame.f_back:
            names.add(frame.f_code.co_name)
        return every(names & {"judge", "random_model"}, x)


class Prepared(Knowing):
    def fools(self, x):
        return every(not self.network.hidden.weight.requires_grad, x)


class Deployed(Knowing):
    def fools(self, x):
        return every(not torch.is_inference_mode_enabled(), x)


class Layout(Knowing):
    def fools(self, x):
        return every(x.is_contiguous(), x)


class Copied(Fooling):
    """Of which a copy is another network."""

    def __deepcopy__(self, memo):
        copied = Knowing()
        copied.fools = lambda x: every(True, x)
        return copied

    def fools(self, x):
        return every(False, x)


class Blends(Remembers):
    share = 0.9


class BlendsForAll(Blends):
    @property
    def seen(self):
        return SHARED


KINDS = [
    Single,
    SmallBatch,
    Place,
    FirstPlace,
    Calls,
    Fades,
    Gradients,
    WantsGradient,
    Grid,
    Remembers,
    RemembersForAll,
    Blends,
    BlendsForAll,
    RemembersWhereWrong,
    GridKnowing,
    CoarseGrid,
    ThirdGradient,
    Middle,
    WhoAsks,
    Prepared,
    Deployed,
    Layout,
    Copied,
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_no_function_of_the_image_is_caught(kind):
    SHARED.clear()
    report = evaluate(kind(), tiny.digits().select(24), "pgd5", EPS, chunk=16)
    raised = {flag.name for flag in report.raised}
    assert raised & {"inconsistent", "random_model"}, raised


@pytest.mark.skipif(sys.platform != "linux", reason="only there does a process branch off")
@pytest.mark.parametrize("kind", [RemembersCoarselyForAll, HereAlone, Replays, Original])
def test_one_that_its_copies_do_not_give_away_is_caught_by_another_process(kind):
    SHARED.clear()
    REPLAYED.clear()
    model = kind()
    report = evaluate(model, tiny.digits().select(24), "pgd20", EPS, chunk=16)
    (flag,) = (flag for flag in report.flags if flag.name == "inconsistent")
    assert report.runs[0].robust_accuracy == report.clean_accuracy
    assert flag.raised and "in a process that saw none of it" in flag.message
    assert model.training and model.calls == 0  # it was asked in that process alone


def test_one_that_waits_is_caught():
    model = Late()
    model.born = time.monotonic() + 1.0
    report = evaluate(model, tiny.digits().select(24), "pgd20x3", EPS, chunk=16)
    took = time.monotonic() - model.born
    assert "inconsistent" in {flag.name for flag in report.raised} or took < 0.5


class InPlace(nn.Module):
    """Normalises the tensor that it is given."""

    def __init__(self):
        super().__init__()
        self.network = tiny.network()

    def forward(self, x):
        return self.network(x.sub_(0.5).div_(0.25) * 0.25 + 0.5)


class Half(nn.Module):
    """Of float32 weights, and logits of 16 bits."""

    def __init__(self):
        super().__init__()
        self.network = tiny.network()

    def forward(self, x):
        return self.network(x).bfloat16()


@pytest.mark.parametrize("model", [tiny.network, InPlace, Half])
def test_an_honest_one_is_not(model):
    report = evaluate(model(), tiny.digits().select(24), "pgd5", EPS, chunk=16)
    (flag,) = (flag for flag in report.flags if flag.name == "inconsistent")
    assert not flag.raised and flag.value < 0.2
