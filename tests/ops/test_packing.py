import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subquad.ops.packing import packed_positions, run_packed


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any))
def test_every_token_comes_back_to_its_place_and_sees_its_own_sequence(lengths):
    borders = torch.tensor([0, *lengths]).cumsum(0)
    total = int(borders[-1])
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    token = torch.arange(total)
    calls = []

    def attend(owner, token, mask):
        calls.append(mask.shape)
        rows = owner[:, 0, :, 0]
        assert all(len(row[keep].unique()) == 1 for row, keep in zip(rows, mask, strict=True))
        assert (mask.sum(1) * 2 >= mask.shape[1]).all(), "more than half is padding"
        return token

    result = run_packed(attend, borders, *(x.float().view(1, 1, -1, 1) for x in (owner, token)))
    assert result.flatten().tolist() == token.tolist()
    assert sum(rows for rows, _ in calls) == sum(n > 0 for n in lengths)
    assert len(calls) <= max(lengths).bit_length()


def test_positions_start_anew_in_each_sequence():
    borders = torch.tensor([0, 3, 3, 5], dtype=torch.int32)
    assert packed_positions(borders).tolist() == [[0, 1, 2, 0, 1]]
