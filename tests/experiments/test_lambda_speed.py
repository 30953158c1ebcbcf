"""Image networks timed in turn. No test here asserts a time."""

import dataclasses
import json

import pytest
import torch

from subquad.bench import image_networks, timing
from subquad.bench.image_networks import (
    NetworkJob,
    NetworkStep,
    build_network,
    training_peak,
    why_no_efficientnets,
)
from subquad.experiments import lambda_speed_run as run_module
from subquad.experiments.lambda_speed import DEPTHS, EXPERIMENT, PLACEMENTS, preset
from subquad.experiments.lambda_speed_run import comparisons, estimate_lambda_speed
from subquad.experiments.lambda_speed_tables import claimed, ratio, speed_tables, verdicts
from subquad.experiments.runner import run_experiment
from subquad.models.multiply_adds import multiply_adds

SMOKE = preset("smoke", "linear")
TINY = dataclasses.replace(SMOKE, placements="CCCC", depths="", efficientnets="")
JOB = NetworkJob(name="resnet50-CCLL", image_size=32, batch_size=2, width=8, threads=1)


def times(median, spread=0.0, count=7):
    return {"median": median, "q25": median - spread, "q75": median + spread, "count": count}


def row(label, kind, comparison, seconds, *, multiply_adds=10**9, spread=0.0, **paper):
    return {
        "label": label, "name": label, "kind": kind, "comparison": comparison, "image_size": 224,
        "parameters": 10**6, "multiply_adds": multiply_adds, "paper": paper,
        "training": times(3 * seconds, spread), "inference": times(seconds, spread),
    }  # fmt: skip


def run(folder, options):
    return run_experiment(EXPERIMENT, options, folder, command=["subquad"], say=str)


def test_the_experiment_has_a_row_for_each_network_and_stands_beside_the_paper(tmp_path):
    pytest.importorskip("transformers")
    results = run(tmp_path / "run", dataclasses.replace(SMOKE, depths=""))
    networks = [(r["comparison"], r["label"]) for r in results["networks"]]
    assert networks == [
        ("where lambdas stand", "resnet50-CCCC"), ("where lambdas stand", "resnet50-LLLL"),
        ("equal accuracy", "EfficientNet-B0"), ("equal accuracy", "LambdaResNet-50@18"),
    ]  # fmt: skip
    for found in results["networks"]:
        for which in ("training", "inference"):
            assert found[which]["q25"] <= found[which]["median"] <= found[which]["q75"]
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == json.loads(
        json.dumps(results)
    )
    assert [t["title"] for t in results["tables"]][-1] == "One over the other"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "7,240 images/s, inference" in page
    assert "0.09 s a step of 1,024" in page
    assert page.count("data:image/png;base64,") == 2
    assert all(rate > 0 for rate in results["gemm_flops"])


def test_without_transformers_efficientnets_are_left_out_with_a_sentence(tmp_path, monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(image_networks, "import_module", absent)
    results = run(tmp_path / "run", dataclasses.replace(SMOKE, placements="", depths=""))
    assert [r["label"] for r in results["networks"]] == ["LambdaResNet-50@18"]
    assert (
        "EfficientNets are left out: transformers cannot be imported (No module named "
        "'transformers')." in results["notes"]
    )


@pytest.mark.parametrize(
    ("number", "parameters", "giga"),
    [(0, 5_288_548, 0.386), (1, 7_794_184, 0.623), (2, 9_109_994, 0.865), (7, 66_347_960, 35.516)],
)
def test_efficientnets_are_the_published_ones(number, parameters, giga):
    pytest.importorskip("transformers")
    with torch.device("meta"):
        model = build_network(f"efficientnet-b{number}")
    assert sum(p.numel() for p in model.parameters()) == parameters
    side = image_networks.EFFICIENTNETS[number].image_size
    assert round(multiply_adds(model, 3, side, side) / 1e9, 3) == giga


def test_efficientnets_of_any_width_and_no_others():
    pytest.importorskip("transformers")
    assert why_no_efficientnets() is None
    model = build_network("efficientnet-b1", width=24).eval()
    assert model(torch.randn(2, 3, 40, 40)).shape == (2, 1000)
    for wrong in ("8", "x"):
        with pytest.raises(ValueError, match=f"must be efficientnet-b0 to .*-b7, got .*-b{wrong}"):
            build_network(f"efficientnet-b{wrong}")


def test_a_step_updates_the_weights_and_keeps_no_gradients():
    step = NetworkStep(JOB)
    before = [p.detach().clone() for p in step.model.parameters()]
    step.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True))
    assert all(p.grad is None for p in step.model.parameters())
    assert step.model.training
    step.infer()
    assert not step.model.training


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"channels_last": True}])
def test_a_step_in_other_arithmetic_and_layout(changes):
    step = NetworkStep(dataclasses.replace(JOB, **changes))
    step.train()
    step.infer()
    weight = step.model.stem.convs[0].conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == ("channels_last" in changes)
    assert all(bool(p.isfinite().all()) for p in step.model.parameters())


def test_memory_of_a_step_is_measured_in_a_process_of_its_own():
    job = dataclasses.replace(JOB, image_size=128)
    assert 1e7 < training_peak(job) < 1e9  # two images of activations, at width 8 as well


def test_a_pass_that_fails_is_left_out(tmp_path, monkeypatch):
    def fail(step):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(NetworkStep, "train", fail)
    results = run(tmp_path / "run", dataclasses.replace(TINY, has_memory=True))
    (found,) = results["networks"]
    assert "training" not in found
    assert "inference" in found
    assert "peak_bytes" not in found
    assert "Left out: resnet50-CCCC, training: out of memory." in results["notes"]


def test_all_networks_of_a_comparison_are_timed_in_turn(tmp_path, monkeypatch):
    order = []
    seconds_of = timing.seconds_of

    def watched(run, device, *, calls=1):
        order.append(run)
        return seconds_of(run, device, calls=1)

    monkeypatch.setattr(timing, "seconds_of", watched)
    run(tmp_path / "run", dataclasses.replace(TINY, repetitions=2))
    timed = 2 + 1  # two passes of the network, and a matrix product
    assert len({id(run) for run in order[-timed:]}) == timed


def test_the_comparisons_are_the_papers():
    found = {c.title: c for c in comparisons(preset("paper", "linear"))}
    assert [e.paper["images_per_second"] for e in found["where lambdas stand"].entries] == [
        rate for rate, _ in PLACEMENTS.values()
    ]
    assert [e.name for e in found["depth 101"].entries] == [
        "resnet-rs-101-CCCC", "resnet-rs-101-SSSS", "101",
    ]  # fmt: skip
    papers = [e.paper for e in found["depth 152"].entries]
    assert [p["accuracy"] for p in papers] == [a for _, a in DEPTHS[152][1:]]
    assert all(not e.paper for e in found["depth 270"].entries)
    pairs = found["equal accuracy"].entries
    assert [(e.label, e.image_size) for e in pairs[8:10]] == [
        ("EfficientNet-B4", 380), ("LambdaResNet-152@224", 224),
    ]  # fmt: skip
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        assert first.paper["training_seconds"] > second.paper["training_seconds"]
        assert first.paper["accuracy"] <= second.paper["accuracy"]


def pair(seconds, of_lambdas, number=0, **changes):
    paper = {"pair": number, "accuracy": 77.0, "is_probable": False}
    return [
        row(f"EfficientNet-B{number}", "EfficientNet", "equal accuracy", seconds,
            multiply_adds=10**8, training_seconds=0.9, **paper, **changes),
        row(f"LambdaResNet-{number}", "LambdaResNet", "equal accuracy", of_lambdas,
            training_seconds=0.6, **paper, **changes),
    ]  # fmt: skip


def test_ratios_are_over_the_partner_and_within_the_quartiles_a_tie():
    (claim,) = claimed(pair(8.0, 4.0))
    assert claim.paper == pytest.approx(1.5)
    assert ratio(claim, "multiply_adds") == (0.1, "less")
    assert ratio(claim, "inference") == (2.0, "more")
    assert ratio(claim, "memory") is None
    (claim,) = claimed(pair(8.0, 7.0, spread=0.6))
    assert ratio(claim, "inference").judged == "tie"
    assert str(ratio(claim, "inference")) == "1.14 (tie)"
    few = pair(8.0, 4.0)
    few[0]["training"]["count"] = 2  # no quartiles to speak of
    (claim,) = claimed(few)
    assert ratio(claim, "training").judged == "tie"
    assert ratio(claim, "inference").judged == "more"


def test_verdicts_follow_the_numbers():
    (said,) = verdicts([*pair(8.0, 4.0), *pair(3.0, 4.0, 1)])
    assert "the paper has EfficientNets slower to train" in said
    assert "1.50 times" in said
    assert "in multiply-adds 0.10 to 0.10: the claim does not hold" in said
    assert "in training time 0.75 to 2.00: the claim holds in 1 of 2" in said
    assert "probable" not in said
    (said,) = verdicts(pair(8.0, 4.0))
    assert "in inference time 2.00: the claim holds." in said
    paper = {"accuracy": 80.0}
    rows = [
        row("ResNet 101", "ResNet", "depth 101", 4.0, images_per_second=4600, **paper),
        row("ResNet + SE 101", "ResNet + SE", "depth 101", 6.0, images_per_second=4000, **paper),
        row("LambdaResNet 101", "LambdaResNet", "depth 101", 5.0, images_per_second=4000, **paper),
        row("resnet50-CCCC", "ResNet", "where lambdas stand", 1.0, images_per_second=6, **paper),
        row("resnet50-LLLL", "LambdaResNet", "where lambdas stand", 3.0, images_per_second=1),
    ]
    squeezed, plain, placed = verdicts(rows)
    assert "over ResNet + SE, training takes 0.83 times as long (no slower in 1 of 1)" in squeezed
    assert "inference takes 1.25 times as long (no slower in 0 of 1); the paper's" in plain
    assert "inference 1.15" in plain
    assert placed.endswith("resnet50-LLLL 3.00 (the paper 6.00).")


def test_tables_hold_rates_and_what_is_missing():
    rows = pair(8.0, 4.0)
    del rows[0]["training"]
    rows[1]["peak_bytes"] = 2_500_000_000
    table, over = speed_tables(rows, 4)
    assert table["lines"][0][4:9] == ["\N{EN DASH}", "8.000", "0", "\N{EN DASH}", "12.50"]
    assert table["lines"][1][9] == "2.50"
    assert over["lines"] == [
        ["EfficientNet-B0 over LambdaResNet-0", "0.10", "\N{EN DASH}", "2.00", "1.50 (training)"]
    ]


def test_the_estimate_counts_every_comparison():
    laptop = preset("laptop", "linear")
    assert 4 < estimate_lambda_speed(laptop)["minutes"] < 10
    alone = dataclasses.replace(laptop, depths="", efficientnets="")
    assert estimate_lambda_speed(alone)["minutes"] < estimate_lambda_speed(laptop)["minutes"] / 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placements": "CCC"}, "placements must be words of 4 letters C and L, got 'CCC'"),
        ({"placements": "CSLL"}, "placements must be words of 4 letters C and L, got 'CSLL'"),
        ({"placements": "CCLL,CCLL"}, "placements must differ, got 'CCLL,CCLL'"),
        ({"depths": "50,60"}, "depths must be among 50, 101, .*, got 60"),
        ({"depths": "101,50"}, "depths must be rising whole numbers of at least 0"),
        ({"efficientnets": "0,8"}, "efficientnets must be among 0, 1, .*, got 8"),
        ({"image_size": 8}, "image_size must be at least 16, got 8"),
        ({"width": 4}, "width must be at least 8, got 4"),
        ({"width": 10}, "width must be a multiple of the 4 heads, got 10"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"seconds": 0.0}, "seconds must be above 0, got 0"),
        ({"placements": "", "depths": "", "efficientnets": " "}, "must name something"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMOKE, **options)


def test_a_gpu_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = dataclasses.replace(SMOKE, device="cuda")
    with pytest.raises(ValueError, match="device must be cpu where torch can use no GPU, got cuda"):
        run_module.run_lambda_speed(options, tmp_path, str)
