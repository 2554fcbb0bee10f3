"""The model card: right numbers, valid metadata, and nothing that breaks its tables."""

import re
from dataclasses import asdict, replace

import pytest
from huggingface_hub import ModelCard

from rsnn_zoo.report.card import check_card, model_card, summary
from rsnn_zoo.spec.config import ModelConfig, WeightsInfo
from rsnn_zoo.spec.names import architectures
from rsnn_zoo.training.recipe import Stage
from tests.conftest import evidence_for
from tests.spec.test_config import CONFIG

EVIDENCE = evidence_for(CONFIG)


def table_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_the_metadata_is_valid_and_carries_every_result():
    card = ModelCard(model_card(CONFIG, EVIDENCE))
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "mit",
        "rsnn_zoo",
        "image-classification",
    )
    assert card.data.model_name == CONFIG.name
    results = {result.metric_name: (result.metric_value, result.metric_args) for result in card.data.eval_results}
    assert results == {
        "Accuracy": (0.95, None),
        "Robust accuracy, ensemble-pgd20, eps 8/255": (0.52, {"eps": 8 / 255}),
        "Robust accuracy, ensemble-pgd20, eps 16/255": (0.44, {"eps": 16 / 255}),
    }


def test_the_tables_say_what_the_evidence_says():
    text = model_card(CONFIG, EVIDENCE)
    assert table_rows(text) == [
        "| attack | eps | accuracy | 95 % interval |",
        "|---|---|---|---|",
        "| none | 0 | 95.0 % | 93.0 to 97.0 % |",
        "| ensemble-pgd20 | 8/255 | 52.0 % | 42.0 to 62.0 % |",
        "| ensemble-pgd20 | 16/255 | 44.0 % | 34.0 to 54.0 % |",
        "| attack | backward mode | eps 8/255 | eps 16/255 |",
        "|---|---|---|---|",
        "| pgd20 | pcw-1.0 | 16 | 32 |",
        "| pgd20 | rate | 8 | 16 |",
    ]
    for said in (
        "A spiking ResNet-20 with 10 classes",
        "hard reset, no leak and trainable thresholds, 4 time steps",
        "by TRADES",
        "272,000 parameters, 1.0 MiB",
        'create_model("resnet20_digits_trades_t4", pretrained=True)',
        "On 360 images (test split)",
        "- per_image: 1,234",
        "Measured with seed 0, precision float32, chunk 64, torch ",
        "  - act1: 0.125",
        "  - epochs: 30",
        "Transactions on Machine Learning Research, 2024",
        "E. Alpaydin",
        "MIT",
    ):
        assert said in text, said


@pytest.mark.parametrize("architecture", architectures())
@pytest.mark.parametrize("timesteps", [None, 4])
def test_every_network_has_a_card_before_its_first_evaluation(architecture, timesteps):
    config = replace(CONFIG, architecture=architecture, timesteps=timesteps, name=None, training={})
    card = ModelCard(model_card(config))
    assert "Not evaluated yet." in card.text and "Not recorded." in card.text
    assert ("spiking-neural-network" in card.data.tags) == (timesteps is not None)


def test_a_free_name_is_loaded_from_where_it_is():
    config = replace(CONFIG, name="my-snn")
    assert 'create_model("local-dir:FOLDER", pretrained=True)' in model_card(config)
    assert 'create_model("hf-hub:me/my-snn", pretrained=True)' in model_card(config, repo="me/my-snn")


def test_a_card_lists_no_settings_of_an_attack_that_never_ran():
    stage = asdict(Stage(objective="natural", eps=8 / 255, attack_steps=7, validation_steps=0, epochs=30))
    text = model_card(replace(CONFIG, training={"stage": stage, "seed": 0}))
    trained = text.partition("## How it was trained")[2]
    assert "  - epochs: 30" in trained and "- seed: 0" in trained
    assert not re.search("attack|eps:|eps_warmup|validation_steps", trained.partition("## Intended")[0])
    selected = model_card(replace(CONFIG, training={"stage": {**stage, "validation_steps": 5}}))
    assert "attack_mode" in selected and "validation_eps" in selected and "attack_steps" not in selected
    assert "attack_steps: 7" in model_card(replace(CONFIG, training={"stage": {**stage, "objective": "at"}}))


def test_a_card_says_how_to_install_the_package():
    assert "pip install" in model_card(CONFIG).partition("```python")[0]


@pytest.mark.parametrize(
    ("count", "said"), [(1, "1 core, 1 process, 1 thread each"), (2, "2 cores, 2 processes, 2 threads")]
)
def test_counts_agree_with_their_nouns(count, said):
    assert said in model_card(CONFIG, {**EVIDENCE, "cores": count, "processes": count, "threads": count})


def test_odd_text_breaks_no_table_and_no_metadata():
    runs = [{**EVIDENCE["runs"][0], "protocol": "a|b\n| c: 'd'"}]
    card = ModelCard(model_card(CONFIG, {**EVIDENCE, "runs": runs, "dataset": "x: [y", "cpu": None}))
    assert all(row.count("|") - row.count("\\|") in (4, 5) for row in table_rows(card.text))
    assert card.data.eval_results[0].dataset_type == "x: [y"


def test_the_pair_and_the_cost_are_on_the_card():
    runs = [{"protocol": "autoattack-v1", "eps": 8 / 255, "robust_accuracy": 0.625, "ci95": [0.5, 0.75]}]
    ann = {"name": "resnet20_digits_trades_ann", "n": 360, "clean": {"accuracy": 0.99, "ci95": [0.98, 1.0]}}
    config = replace(CONFIG, training={"ann": ann["name"], "seconds": 12345.6})
    text = model_card(config, {**EVIDENCE, "ann": {**ann, "runs": runs}})
    assert "| autoattack-v1 | 8/255 | 62.5 % | 50.0 to 75.0 % |" in text
    assert "A processor" in text and "2 cores, 2 processes, 1 thread each." in text and "- seconds: 12,346" in text
    assert "Minutes of all processes together: ensemble-pgd20 at 16/255 0.1, ensemble-pgd20 at 8/255 0.1." in text


@pytest.mark.parametrize(
    ("name", "stage", "said"),
    [
        ("resnet20_digits_mart_t4", {"objective": "trades"}, "MART (Wang et al., ICLR 2020), and fine-tuned by TRADES"),
        ("resnet20_digits_mart_t4", {"objective": "mart"}, "MART (Wang et al., ICLR 2020), and fine-tuned by the same"),
        ("resnet20_digits_at_t4", {"objective": "mine"}, "(Madry et al., ICLR 2018), and fine-tuned by mine."),
        ("resnet20_digits_trades_t4", {"epochs": 3}, "TRADES (Zhang et al., ICML 2019), and fine-tuned."),
        ("resnet20_digits_trades_t4", None, "TRADES (Zhang et al., ICML 2019); no fine-tuning is recorded."),
    ],
)
def test_the_card_tells_the_training_of_the_ann_from_the_fine_tuning(name, stage, said):
    ann = f"{name[:-2]}ann"
    training = {"ann": ann} | ({"stage": stage} if stage else {})
    text = summary(replace(CONFIG, name=name, training=training, weights=None))
    assert f"Converted from {ann}, itself trained on Digits by " in text and said in text
    converted = {"ann": ann, "conversion": {"scale": 0.3}}  # as convert.py records it
    assert ", without fine-tuning." in summary(replace(CONFIG, name=name, training=converted))


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"stage": {"objective": "mart"}}, "Trained on Digits by MART (Wang et al., ICLR 2020)."),
        ({"stage": {"objective": "mine"}}, "Trained on Digits by mine."),
        ({"seed": 0}, "By its name trained on Digits by TRADES (Zhang et al., ICML 2019): unrecorded."),
    ],
)
def test_a_training_that_nobody_recorded_is_not_told_as_a_fact(training, said):
    assert said in summary(replace(CONFIG, name="resnet20_digits_trades_t4", training=training, weights=None))


def test_images_that_somebody_chose_are_said_to_be_chosen():
    assert "On 360 images (test split)" in model_card(CONFIG, {**EVIDENCE, "n": 360})
    assert "On 3 chosen images (test split)" in model_card(CONFIG, {**EVIDENCE, "n": 3, "index": [4, 7, 9]})
    validation = {**EVIDENCE, "split": "validation", "index": [4, 7, 9]}  # by their places in the training images
    assert "chosen" not in model_card(CONFIG, validation)


@pytest.mark.parametrize("metadata", ["a: &a [x, x]\nb: [*a, *a]", "a: [", "[" * 100_000, "!!timestamp x"])
def test_metadata_of_a_stranger_meet_no_parser(metadata):
    card = model_card(CONFIG, EVIDENCE).replace("---\n", f"---\n{metadata}\n", 1)
    with pytest.raises(ValueError, match="the card is not what config and evidence make: from line 2 on"):
        check_card(card, CONFIG, EVIDENCE)


def test_a_card_names_where_it_may_be_loaded_from():
    card = model_card(CONFIG, EVIDENCE, "me/net")
    assert check_card(card, CONFIG, EVIDENCE) == check_card(card, CONFIG, EVIDENCE, "me/net") == "me/net"
    with pytest.raises(ValueError, match="says to load me/net, and the entry is that of you/net"):
        check_card(card, CONFIG, EVIDENCE, "you/net")


def test_the_objective_of_the_ann_is_that_of_its_own_name():
    training = {"ann": "resnet20_digits_at_ann", "stage": {"objective": "trades"}}
    text = summary(replace(CONFIG, name="resnet20_digits_trades_t4", training=training, weights=None))
    assert "trained on Digits by adversarial training (Madry et al., ICLR 2018), and fine-tuned by TRADES" in text


def test_the_card_claims_no_training_of_weights_from_a_file():
    training = {"ann": "weights.pth", "stage": {"objective": "trades"}}
    text = summary(replace(CONFIG, name="resnet20_digits_trades_t4", training=training, weights=None))
    assert "Converted from weights.pth, whose training is not recorded, and fine-tuned on Digits by TRADES" in text


def test_unknown_keys_of_the_evidence_are_ignored():
    evidence = {**EVIDENCE, "new": {"x": 1}, "runs": [{**EVIDENCE["runs"][0], "new": [1]}]}
    assert "16/255" in model_card(CONFIG, evidence)


def test_flags_that_speak_against_the_figures_are_on_the_card():
    flags = {
        name: {"raised": name == "far", "value": 0.5, "message": f"{name} is odd."} for name in ("far", "more_eps")
    }
    text = model_card(CONFIG, {**EVIDENCE, "flags": flags})
    assert "1 of 2 sanity checks find nothing" in text and "- far is odd." in text and "more_eps" not in text


def test_attacks_that_felled_nothing_are_named_outside_the_table():
    def attacks(*felled):
        modes = ("pcw-1", "rate", "ste")
        return [{"attack": "pgd20", "mode": mode, "felled": n} for mode, n in zip(modes, felled, strict=True)]

    first, second = EVIDENCE["runs"]
    runs = [{**first, "attacks": attacks(3, 0, 0)}, {**second, "attacks": attacks(0, 1, 0)}]
    text = model_card(CONFIG, {**EVIDENCE, "runs": runs})
    assert [row for row in text.splitlines() if row.startswith("| pgd20")] == [
        "| pgd20 | pcw-1 | 0 | 3 |",
        "| pgd20 | rate | 1 | 0 |",
    ]
    assert "\n\nThese felled no image, or had none left to attack: pgd20 (ste).\n" in text
    text = model_card(CONFIG, {**EVIDENCE, "runs": [{**runs[0], "attacks": attacks(0, 0, 0)}]})
    assert "No member of ensemble-pgd20 felled an image." in text and ": pgd20 (pcw-1, rate, ste)." in text


def test_a_summary_is_what_it_is_and_what_it_achieved():
    text = summary(CONFIG, EVIDENCE)
    assert "A spiking ResNet-20" in text and table_rows(text) == table_rows(model_card(CONFIG, EVIDENCE))[:5]
    assert text.endswith("Spikes an image: 1,234")
    flags = {"far": {"raised": False, "value": 0.0, "message": "It is odd."}}
    text = summary(CONFIG, {**EVIDENCE, "energy": {"ratio": 0.25}, "flags": flags})
    assert "\n\nNo flag is raised.\n" in text and text.endswith("Energy relative to its ANN, estimated: 0.25")
    assert summary(CONFIG).endswith("Not evaluated yet.")


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        ("| 95.0 % |", "| 96.0 % |"),
        ("value: 0.52", "value: 0.53"),
        ("| pgd20 | rate |", "| pgd20 | relu |"),
        ("| rate | 8", ""),
        ("## Results", "## Results\n\n**Robust accuracy 71.2 %**"),
        ("## Results", "## Results\n\n | worst-case-v1 | 94.4 % |"),
        ("## Results", "## Results\n\n<b>94.4 %</b>"),
        ("How to load it", "Loading"),
    ],
)
def test_a_card_that_says_anything_else_is_found(said, instead):
    card = model_card(CONFIG, EVIDENCE)
    assert check_card(card, CONFIG, EVIDENCE) is None and said in card
    with pytest.raises(ValueError, match="the card is not what config and evidence make"):
        check_card(card.replace(said, instead, 1), CONFIG, EVIDENCE)
    with pytest.raises(ValueError, match="is not what"):
        check_card("", CONFIG, EVIDENCE)


def test_a_network_without_runs_or_spikes_has_a_card():
    evidence = {key: EVIDENCE[key] for key in ("dataset", "n", "clean", "weights_sha256")}
    weights = WeightsInfo("model.safetensors", "0" * 64, 100, "float32", 10)
    ann = ModelConfig("vgg11", 10, 512, 3, 32, None, (0.0,) * 3, (1.0,) * 3, weights=weights)
    assert table_rows(model_card(ann, evidence))[-1] == "| none | 0 | 95.0 % | 93.0 to 97.0 % |"
