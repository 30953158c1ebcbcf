import math

import pytest
import torch

from subquad.bench.lsh_options import LshOptions
from subquad.bench.lsh_rounds import draw_tokens, measure_lsh_rounds, new_report
from subquad.bench.tables import tables
from subquad.bench.timing import Progress
from subquad.plots import png_bytes
from subquad.plots.bench import figures

SMALL = {"seq_len": 96, "heads": 1, "head_dim": 8, "chunk_size": 8, "num_buckets": 8, "threads": 1}


def measured(**changes):
    options = LshOptions(**{**SMALL, "rounds": (1, 16), "draws": 3, **changes})
    report = new_report(options)
    progress = Progress()
    measure_lsh_rounds(options, report, progress=progress)
    assert progress.done == progress.total
    return report


@pytest.mark.parametrize("is_causal", [True, False])
def test_the_error_falls_with_the_rounds(is_causal):
    report = measured(is_causal=is_causal)
    assert len(report.rows) == 2 * 2 * 2
    for queries in ("clustered", "normal"):
        for combine in ("mean", "logsumexp"):
            one, many = (
                report.find(queries=queries, combine=combine, rounds=n).more for n in (1, 16)
            )
            assert many["error"] < 0.8 * one["error"]
            assert one["error_low"] <= one["error"] <= one["error_high"]
    lines = tables(report)[0].rows
    assert [line[2] for line in lines] == ["1", "1", "16", "16"] * 2


def test_one_chunk_is_exact_whatever_the_rounds():
    for row in measured(chunk_size=96, rounds=(1, 2), draws=1).rows:
        assert row.more["error"] < 1e-5


def test_queries_of_one_cluster_score_higher_than_others():
    options = LshOptions(**{**SMALL, "head_dim": 64})
    qk, v = draw_tokens("clustered", options)
    assert torch.equal(qk, draw_tokens("clustered", options)[0])
    assert not torch.equal(qk, draw_tokens("normal", options)[0])
    assert v.shape == qk.shape == (1, 1, 96, 64)
    lengths = qk.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 5 * 8.0))
    cosines = (qk @ qk.mT / lengths[..., None] ** 2)[0, 0]
    others = cosines[~torch.eye(96, dtype=torch.bool)]
    near = others > 0.5
    assert 0.03 < near.float().mean() < 0.12  # of 16 clusters
    assert others[near].mean() == pytest.approx(0.8, abs=0.05)
    assert others[~near].abs().mean() < 0.2


def test_the_figure_has_a_panel_a_kind_and_a_line_a_way_to_combine():
    found = figures(measured(rounds=(1, 2, 4), draws=2).as_json())
    assert list(found) == ["error"]
    assert png_bytes(found["error"]).startswith(b"\x89PNG")
    panels = found["error"].axes
    assert [axes.get_title() for axes in panels] == ["clustered queries", "normal queries"]
    for axes in panels:
        assert [line.get_label() for line in axes.lines] == ["mean", "logsumexp"]
        assert list(axes.lines[0].get_xdata()) == [1, 2, 4]
        assert axes.get_ylim()[0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": ()}, "rounds must rise and be at least one"),
        ({"rounds": (4, 2)}, r"rounds must rise .* got \[4, 2\]"),
        ({"rounds": (0, 2)}, "rounds must be at least 1, got 0"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"seq_len": 1}, "seq_len must be at least 2, got 1"),
        ({"num_buckets": 5}, "num_buckets must be even, got 5"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LshOptions(**change)


def test_times_are_of_each_row():
    assert all(math.isfinite(row.seconds.median) and row.seconds.count == 3
               for row in measured(rounds=(1,)).rows)  # fmt: skip
