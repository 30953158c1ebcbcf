from subquad.experiments.compare import merged


def test_options_that_differ_stand_side_by_side():
    first = {"mixer": "linear", "seed": 0, "train": {"lr": 0.1, "batch_size": 4}}
    second = {"mixer": "softmax", "seed": 0, "train": {"lr": 0.2, "batch_size": 4}}
    assert merged([first, second]) == {
        "mixer": "linear / softmax",
        "seed": 0,
        "train": {"lr": "0.1 / 0.2", "batch_size": 4},
    }
    assert merged([first]) == first
