"""Runs in one table: means, spreads, ties, and what may not be put together."""

import json

import pytest

from subquad.cli import main
from subquad.experiments.seeds import differences, read_run, seed_rows


def run(mixer, seed, test, **changes):
    results = {
        "experiment": "mnist-pixels", "scale": "laptop", "unit": "bits/dim", "mixer": mixer,
        "seed": seed, "test": test, "steps": 100, "minutes": 2.0 + seed,
        "claims": [{"value": 0.644, "unit": "bits/dim"}, {"value": 142.8, "unit": "images/s"}],
        **changes,
    }  # fmt: skip
    options = {"mixer": mixer, "seed": seed, "model": {"d_model": 8}, "data_folder": None}
    return {"results": results, "options": options}


def test_a_line_has_the_mean_and_the_range_over_seeds():
    first, second = seed_rows(
        [
            run("linear", 0, 1.0, generation={"1": 2.0, "64": 8.0}, state_bytes_per_image=7),
            run("softmax", 0, 3.0),
            run("linear", 1, 2.0, generation={"1": 2.0, "64": 4.0}, state_bytes_per_image=7),
        ]
    )
    assert (first["mixer"], first["seeds"], first["test"]) == ("linear", [0, 1], 1.5)
    assert (first["low"], first["high"], first["minutes"]) == (1.0, 2.0, 2.5)
    assert (first["images_per_second"], first["state_bytes"], first["paper"]) == (6.0, 7, 0.644)
    assert (second["mixer"], second["images_per_second"], second["ties"]) == ("softmax", None, None)


def test_ranges_that_touch_are_ties():
    a, b, c, d = seed_rows(
        [
            run("a", 0, 1.0), run("a", 1, 2.0), run("b", 0, 2.0), run("b", 1, 3.0),
            run("c", 0, 3.5), run("c", 1, 4.0), run("d", 0, 3.7),
        ]
    )  # fmt: skip
    assert (a["ties"], b["ties"], c["ties"]) == (["b"], ["a"], [])
    assert d["ties"] is None  # one seed: no range


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (
            [run("a", 0, 1.0), run("a", 0, 1.0)],
            r"runs of a must have different seeds, got \[0, 0\]",
        ),
        ([run("a", 0, 1.0), run("b", 0, 1.0, scale="long")], "same scale, got laptop and long"),
        ([run("a", 0, 1.0), run("b", 0, 1.0, experiment="x")], "same experiment, got mnist"),
    ],
)
def test_what_does_not_belong_together_is_refused(runs, message):
    with pytest.raises(ValueError, match=message):
        seed_rows(runs)


def test_options_that_differ_are_told_but_for_mixer_and_seed():
    other = run("b", 1, 1.0)
    assert differences([run("a", 0, 1.0), other]) == []
    other["options"]["model"] = {"d_model": 16}
    assert differences([run("a", 0, 1.0), other]) == ["d_model: 8 and 16"]


def test_folders_and_exported_files_are_one_table(tmp_path, capsys):
    folder, file = tmp_path / "run", tmp_path / "exported.json"
    folder.mkdir()
    one, two = run("linear", 0, 1.0), run("linear", 1, 2.0)
    (folder / "results.json").write_text(json.dumps(one["results"]))
    (folder / "config.json").write_text(json.dumps({"options": one["options"]}))
    file.write_text(json.dumps(two))
    assert read_run(folder) == one
    out = tmp_path / "new" / "table.json"
    assert main(["compare", str(folder), str(file), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for words in ("mnist-pixels, laptop scale", "linear", "1.5", "0.644", "Ties"):
        assert words in text
    assert json.loads(out.read_text())["rows"][0]["seeds"] == [0, 1]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "compare needs the folders or files of finished runs, got none"),
        (["{tmp}"], 1, "results.json is missing"),
        (["{tmp}/other.json"], 1, "must hold a run of one model, got something else"),
        (["{tmp}/other.json", "--outt", "x"], 2, "unknown option --outt; did you mean --out?"),
        (["{tmp}/other.json", "--out", "x.txt"], 2, "--out must name a .json file, got x.txt"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, words, code, message):
    (tmp_path / "other.json").write_text('{"results": {"rows": []}, "options": {}}')
    found = main(["compare", *(word.format(tmp=tmp_path) for word in words)])
    assert message in capsys.readouterr().err
    assert found == code
