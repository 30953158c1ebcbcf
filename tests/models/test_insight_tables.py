"""Components of filters and similarity of positions, against tables made by hand."""

import pytest
import torch

from subquad.models import VisionTransformer
from subquad.models.insight_tables import filter_components, position_similarity

DOUBLE = torch.float64


def small(**changes):
    options = {
        "image_size": (8, 12), "patch_size": 4, "in_channels": 2, "num_classes": 3, "d_model": 8,
        "num_layers": 2, "num_heads": 2, **changes,
    }  # fmt: skip
    return VisionTransformer(**options).to(DOUBLE)


def with_filters(model, flat):
    with torch.no_grad():
        model.stem.proj.weight.copy_(flat.view(8, 2, 4, 4))
    return model


def test_filters_of_known_rank_have_as_many_components():
    basis, _ = torch.linalg.qr(torch.randn(32, 2, dtype=DOUBLE))
    amounts = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]], dtype=DOUBLE).repeat(2, 1)
    model = with_filters(small(), amounts @ basis.T + 5)  # the mean is taken out
    found = filter_components(model)
    assert found.filters.shape == (8, 2, 4, 4)  # as many as there are filters, not 28
    torch.testing.assert_close(found.shares[:2], torch.tensor([0.9, 0.1], dtype=DOUBLE))
    assert found.shares[2:].max() < 1e-20
    rows = found.filters.flatten(1)
    torch.testing.assert_close((rows[:2] @ basis).abs(), torch.eye(2, dtype=DOUBLE))
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


def test_all_components_rebuild_the_filters():
    torch.manual_seed(1)
    model = small()
    flat = model.stem.proj.weight.detach().flatten(1)
    centred = flat - flat.mean(0)
    rows = filter_components(model).filters.flatten(1)
    torch.testing.assert_close(centred @ rows.T @ rows, centred)
    assert filter_components(model, 3).filters.shape == (3, 2, 4, 4)
    assert filter_components(model, 3).shares.sum() < filter_components(model).shares.sum()


def test_filters_that_are_all_one_have_no_variance():
    found = filter_components(with_filters(small(), torch.ones(8, 32, dtype=DOUBLE)))
    assert (found.shares == 0).all()


@pytest.mark.parametrize("stem", ["conv", "r-ti"])
def test_a_stem_without_patches_of_pixels_is_refused(stem):
    model = VisionTransformer(
        image_size=32, patch_size=4 if stem == "conv" else 32, d_model=8, num_layers=1, num_heads=2,
        stem=stem,
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"stem must be \"patch\" for filters .*, got '{stem}'"):
        filter_components(model)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        filter_components(small(), 0)


def test_positions_are_compared_each_with_all():
    model = small(num_heads=1, d_model=2, pooling="class")
    angles = torch.tensor([9.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5], dtype=DOUBLE)  # the class row first
    with torch.no_grad():
        model.positions.table.copy_(torch.stack([angles.cos(), 3 * angles.sin()], -1) * 2)
        model.positions.table[..., 1] /= 3
    found = position_similarity(model)
    assert found.shape == (2, 3, 2, 3)
    torch.testing.assert_close(found.view(6, 6), (angles[1:, None] - angles[1:]).cos())


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_tables_of_rows_and_columns_are_compared_as_they_are_added(pooling):
    found = position_similarity(small(positions="learned-2d", pooling=pooling))
    torch.testing.assert_close(found, found.permute(2, 3, 0, 1))
    torch.testing.assert_close(found.view(6, 6).diagonal(), torch.ones(6, dtype=DOUBLE))
    model = small(positions="learned-2d", pooling=pooling)
    with torch.no_grad():
        model.positions.columns.zero_()
    same_row = position_similarity(model)[1, 0, 1]
    torch.testing.assert_close(same_row, torch.ones(3, dtype=DOUBLE))


def test_of_a_table_for_each_layer_the_first_is_taken():
    model = small(position_place="layers", pooling="mean")
    before = position_similarity(model)
    with torch.no_grad():
        model.positions[1].table.normal_()
    torch.testing.assert_close(position_similarity(model), before)
    with torch.no_grad():
        model.positions[0].table.normal_()
    assert not torch.allclose(position_similarity(model), before)


@pytest.mark.parametrize("positions", ["none", "coordinates", "relative"])
def test_positions_without_a_table_are_refused(positions):
    message = f'positions must be "learned" or "learned-2d" .*, got \'{positions}\''
    with pytest.raises(ValueError, match=message):
        position_similarity(small(positions=positions))
