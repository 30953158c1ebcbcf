"""lambda-compare and lambda-ablations: rows, verdicts, variants of the layer, what is refused."""

import dataclasses
import json

import pytest
import torch

from helpers import assert_near
from subquad.experiments import lambda_rows
from subquad.experiments.lambda_ablations_run import ablation_rows, differences
from subquad.experiments.lambda_compare_run import compare_rows, verdict
from subquad.experiments.lambda_options import ABLATIONS, LAYERS, SmallResNetOptions
from subquad.experiments.lambda_rows import blank_sets, load_sets, margin
from subquad.experiments.lambda_variants import AblatedLambdaLayer, ablate
from subquad.experiments.registry import EXPERIMENTS, GROUPS
from subquad.experiments.runner import run_experiment
from subquad.layers import LambdaLayer
from subquad.models import SmallResNet
from subquad.models.multiply_adds import multiply_adds
from subquad.ops.linear_attention import linear_attention_quadratic

COMPARE, ABLATE = EXPERIMENTS["lambda-compare"], EXPERIMENTS["lambda-ablations"]
COMMAND = ["subquad", "run", "x"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lambda_rows, "images_per_second", lambda *_: 7.0)


def smoke(experiment, **changes):
    return dataclasses.replace(experiment.preset("smoke", "linear"), device="cpu", **changes)


def run(experiment, folder, **changes):
    options = smoke(experiment, **changes)
    return run_experiment(experiment, options, folder, command=COMMAND, say=str)


def test_the_smoke_scale_of_compare_leaves_rows_of_both_sets(tmp_path):
    changes = {"layers": "convolution,lambda", "placements": ""}
    results = run(COMPARE, tmp_path / "run", **changes)
    names = [row["row"] for row in results["rows"]]
    labels = ("convolution", "lambda")
    assert names == [f"{g}-{x}" for g in ("embedded-mnist", "drawings") for x in labels]
    for row in results["rows"]:
        assert row["steps"] == 2
        assert 0 <= row["test_accuracy"] <= 1
        assert row["inference_images_per_second"] == 7
        assert row["multiply_adds"] > 10_000
        assert json.loads((tmp_path / "run" / row["row"] / "results.json").read_text()) == row
    plain, lambdas = results["rows"][:2]
    assert plain["paper_accuracy"] == 0.769
    assert (lambdas["paper_accuracy"], lambdas["paper_parameters_millions"]) == (0.784, 15.0)
    assert sum("lambda in all stages has" in note for note in results["notes"]) == 2
    page = (tmp_path / "run" / "report.html").read_text()
    for words in ("made-up drawings", "multiply-adds an image", "Placements: a letter", "7,240"):
        assert words in page
    assert all((tmp_path / "run" / figure).is_file() for figure in results["figures"])
    assert run(COMPARE, tmp_path / "run", **changes) == results  # nothing is trained again


def test_the_smoke_scale_of_ablations_leaves_a_table(tmp_path):
    results = run(ABLATE, tmp_path / "run", ablations="default,position only")
    assert [row["label"] for row in results["rows"]] == ["default", "position only"]
    assert results["rows"][1]["paper_accuracy"] == 0.781
    page = (tmp_path / "run" / "report.html").read_text()
    for words in ("k = 4, h = 2", "one seed", "were not read in the paper"):
        assert words in page


@pytest.mark.slow
def test_a_step_is_measured_in_a_process_of_its_own(tmp_path):
    changes = {"layers": "lambda", "placements": "", "drawings": "none", "has_memory": True}
    (row,) = run(COMPARE, tmp_path / "run", **changes)["rows"]
    assert 10_000 < row["peak_bytes"] < 10**9


@pytest.mark.parametrize("experiment", [COMPARE, ABLATE], ids=lambda e: e.name)
def test_every_row_can_be_trained(experiment):
    options = smoke(experiment)
    if experiment is COMPARE:
        rows = compare_rows(options, load_sets(options, options.drawings))
        assert len(rows) == 2 * (len(LAYERS) + 4)
    else:
        rows = ablation_rows(options, load_sets(options)[0])
        assert len(rows) == len(ABLATIONS)
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        task = row.build()
        task.model.train()
        loss = task.loss(*task.batch(0))
        loss.backward()
        assert loss.isfinite(), row.name
        assert all(p.grad is None or p.grad.isfinite().all() for p in task.model.parameters())


def test_rows_hold_the_layers_that_they_name():
    options = COMPARE.preset("laptop", "linear")
    rows = {row.label: row for row in compare_rows(options, blank_sets(options, "clipart"))[-12:]}
    model = rows["CLL"].build().model
    assert [s[0] for s in model.config["stages"]] == ["C", "L", "L"]
    assert model.config["image_size"] == [32, 32]
    assert model.head.out_features == 22
    four = rows["lambda u4 r7"].build().model
    layers = [m for m in four.modules() if isinstance(m, LambdaLayer)]
    assert all((m.intra_depth, m.table.shape[2]) == (4, 7) for m in layers)
    counts = {
        label: sum(p.numel() for p in rows[label].build().model.parameters())
        for label in ("convolution", "lambda", "lambda u4 r7", "squeeze-excitation")
    }
    assert counts["lambda"] < counts["convolution"] < counts["squeeze-excitation"]
    assert counts["lambda"] < counts["lambda u4 r7"]


def image():
    return torch.randn(3, 6, 5, 4, generator=torch.Generator().manual_seed(1)).double()


def variant(**options):
    torch.manual_seed(0)
    sizes = {"num_heads": 2, "head_dim": 3, "grid": (5, 4)}
    return AblatedLambdaLayer(6, 8, **{**sizes, **options}).double()


@pytest.mark.parametrize("options", [{}, {"window": 3, "grid": None}, {"intra_depth": 2}])
def test_a_variant_without_a_change_is_the_layer(options):
    layer = LambdaLayer(6, 8, **{"num_heads": 2, "head_dim": 3, "grid": (5, 4), **options}).double()
    same = variant(**options)
    same.load_state_dict(layer.state_dict())
    assert_near(same(image()), layer(image()), 1e-12)


def test_content_and_position_make_the_whole():
    whole, content = variant().eval(), variant(has_position=False).eval()
    position = variant(has_content=False).eval()
    content.load_state_dict({k: v for k, v in whole.state_dict().items() if k != "table"})
    state, (q, k, _) = whole.state_dict(), whole.widths
    weight = state["qkv.weight"]
    position.load_state_dict({**state, "qkv.weight": torch.cat([weight[:q], weight[q + k :]])})
    assert_near(content(image()) + position(image()), whole(image()), 1e-12)


@pytest.mark.parametrize("keys", ["l2", "none"])
def test_keys_are_normalised_over_the_context(keys):
    layer = variant(keys=keys, has_position=False, batch_norm=False)
    tokens = image().flatten(2)
    q, k, v = torch.split(layer.qkv.weight @ tokens, list(layer.widths), dim=1)
    if keys == "l2":
        k = k / k.square().sum(2, keepdim=True).sqrt()
    q = q.reshape(3, 2, 3, 20).transpose(2, 3)
    k, v = k.transpose(1, 2).unsqueeze(1), v.transpose(1, 2).unsqueeze(1)
    expected = torch.cat(
        [linear_attention_quadratic(part, k, v, normalize=False) for part in q.split(1, 1)], 1
    )
    assert_near(layer(image()), expected.transpose(2, 3).reshape(3, 8, 5, 4), 1e-12)


def test_queries_with_a_softmax_are_weights():
    layer = variant(queries="softmax", has_content=False, batch_norm=False)
    with torch.no_grad():
        layer.table[:] = layer.table[:1]  # the same for all channels of a query
    plain = variant(queries="none", has_content=False, batch_norm=False)
    with torch.no_grad():
        plain.qkv.weight[6:] = layer.qkv.weight[6:]
        plain.table[:] = layer.table
    with torch.no_grad():
        plain.qkv.weight[:6] = 0
    assert_near(plain(image()), torch.zeros(3, 8, 5, 4), 1e-12)
    summed = layer(image()).reshape(3, 2, 4, 5, 4)
    assert_near(summed[:, 0], summed[:, 1], 1e-12)  # sums of weights are 1, whatever the query


def test_position_alone_has_no_keys_and_fewer_multiply_adds():
    torch.manual_seed(0)
    model = SmallResNet(
        ("L",), num_classes=3, image_size=6, width=8, num_heads=2, head_dim=4, in_channels=1
    )
    before = multiply_adds(model, 1, 6, 6)
    ablate(model, has_content=False)
    # On 36 pixels: keys of 4 out of 8, content lambdas of 4 x 4, applied to queries of 2 x 4.
    assert before - multiply_adds(model, 1, 6, 6) == 36 * (8 * 4 + 4 * 4 + 4 * 8)


def test_ablations_change_what_they_name():
    def layers(**changed):
        model = SmallResNet(
            ("L", "CL"), num_classes=3, image_size=9, width=8, window=5, num_heads=2
        )
        ablate(model, **changed)
        return [m for m in model.modules() if isinstance(m, LambdaLayer)]

    assert [m.table.shape[2] for m in layers(window=3)] == [3, 3]
    assert [m.table.shape[2] for m in layers(window=None)] == [17, 9]
    assert [m.head_dim for m in layers(head_dim=8)] == [8, 8]
    assert [m.intra_depth for m in layers(intra_depth=4, window=7)] == [4, 4]
    assert [m.norm_q for m in layers(batch_norm=False)] == [None, None]
    assert all(type(m) is AblatedLambdaLayer for m in layers())


def row(label, accuracy, parameters=10):
    return {"group": "g", "label": label, "test_accuracy": accuracy, "parameters": parameters}


@pytest.mark.parametrize(
    ("lambdas", "words"),
    [
        (
            row("lambda", 0.92, 6),
            ("0.60 times", "+2.00 points", "(better", "parameters holds here"),
        ),
        (row("lambda", 0.899, 6), ("-0.10 points", "(a tie", "parameters holds here")),
        (row("lambda", 0.88, 6), ("-2.00 points", "(worse", "does not hold here")),
        (row("lambda", 0.92, 12), ("1.20 times", "(better", "does not hold here")),
    ],
)
def test_the_verdict_is_that_of_the_numbers(lambdas, words):
    (said,) = verdict([row("convolution", 0.9), lambdas], "g", 10_000)
    assert all(word in said for word in words)


def test_failed_rows_have_no_verdict():
    rows = [row("convolution", 0.9), {"group": "g", "label": "lambda", "failed": "the loss is nan"}]
    assert verdict(rows, "g", 10_000) == []
    assert differences(rows, 10_000) == []


def test_two_standard_errors_by_hand():
    assert margin((row("a", 0.5), row("b", 0.5)), 5000) == pytest.approx(2 * 0.01)


def test_differences_name_what_is_apart():
    rows = [row("default", 0.9), row("scope 3", 0.85), row("k 8", 0.901)]
    (said,) = differences(rows, 10_000)
    assert "over the default: scope 3 -5.00. Ties: k 8." in said


@pytest.mark.parametrize(
    ("experiment", "changes", "message"),
    [
        (COMPARE, {"layers": ""}, "layers must be at least one, none twice, got ''"),
        (COMPARE, {"layers": "lambda,lambda"}, "layers must be at least one, none twice"),
        (COMPARE, {"layers": "lambda,gru"}, "layers must be among convolution, .*, got 'gru'"),
        (COMPARE, {"placements": "CLX"}, "placements must be words of three letters, .* got 'CLX'"),
        (COMPARE, {"placements": "CCC"}, "placements must be words of three letters"),
        (ABLATE, {"ablations": "none"}, "ablations must be among default, .*, got 'none'"),
        (ABLATE, {"ablations": ""}, "ablations must be at least one, none twice"),
        (COMPARE, {"shift": -1}, "shift must be at least 0, got -1"),
    ],
)
def test_options_that_do_not_fit_are_refused(experiment, changes, message):
    with pytest.raises(ValueError, match=message):
        smoke(experiment, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 6}, r"num_heads must divide width \(6\), got 4"),
        ({"window": 4}, "window must be odd and at least 1, got 4"),
        ({"attention_window": -1}, "attention_window must be odd and at least 1, got -1"),
        ({"stem_stride": 3}, "stem_stride must be 1 or 2, got 3"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SmallResNetOptions(**{"blocks": 1, "width": 8, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": "softmin"}, "keys must be one of softmax, l2, none; got 'softmin'"),
        ({"queries": "l2"}, "queries must be one of none, softmax; got 'l2'"),
        ({"has_content": False, "has_position": False}, "one of has_content and has_position must"),
    ],
)
def test_variants_that_do_not_exist_are_refused(changes, message, unhooked):
    with pytest.raises(ValueError, match=message):
        variant(**changes)


def test_a_variant_takes_no_mask():
    with pytest.raises(ValueError, match="key_mask must be None in a layer for comparisons"):
        variant()(image(), key_mask=torch.ones(3, 20, dtype=torch.bool))


@pytest.mark.parametrize("scale", ["smoke", "laptop", "long", "paper"])
def test_presets_and_the_group(scale):
    for experiment in (COMPARE, ABLATE):
        assert experiment.preset(scale, "linear").scale == scale
    names = [name for name, _ in GROUPS["lambda-networks"]]
    assert names[:2] == ["lambda-compare", "lambda-ablations"]
