import numpy as np
import pytest

from subquad.data.token_rows import block_rows, joined, sequence_rows, shuffled, take_rows

SEQUENCES = [np.array(one, np.uint8) for one in ([1, 2, 3], [4], [5, 6, 7, 8, 9])]


def take(rows, places, seq_len, padding=27, rng=None):
    return take_rows(rows, places, seq_len, padding=padding, rng=rng).tolist()


def test_each_sequence_is_a_row_between_boundaries():
    rows = sequence_rows(SEQUENCES, 25)
    assert take(rows, [1, 0], 9) == [[25, 4, 25, 27, 27], [25, 1, 2, 3, 25]]
    assert take(rows, [2, 1], 4) == [[25, 5, 6, 7], [25, 4, 25, 27]]


def test_long_rows_are_cut_at_every_place_and_short_ones_at_none():
    rows, rng = sequence_rows(SEQUENCES, 25), np.random.default_rng(0)
    found = {tuple(take(rows, [2], 5, rng=rng)[0]) for _ in range(60)}
    assert found == {(25, 5, 6, 7, 8), (5, 6, 7, 8, 9), (6, 7, 8, 9, 25)}
    assert take(rows, [0], 5, rng=rng) == [[25, 1, 2, 3, 25]]


def test_joined_sequences_are_cut_into_blocks_and_the_rest_is_dropped():
    tokens = joined(SEQUENCES, 25)
    assert tokens.tolist() == [1, 2, 3, 25, 4, 25, 5, 6, 7, 8, 9, 25]
    rows = block_rows(tokens, 5)
    assert take(rows, [1, 0], 5, padding=None) == [[25, 5, 6, 7, 8], [1, 2, 3, 25, 4]]
    assert len(rows.starts) == 2
    with pytest.raises(ValueError, match="tokens must be at least seq_len = 13, got 12"):
        block_rows(tokens, 13)


def test_rows_of_several_lengths_need_padding():
    with pytest.raises(ValueError, match="padding must be given for rows of several lengths"):
        take(sequence_rows(SEQUENCES, 25), [0, 1], 9, padding=None)


def test_every_pass_has_an_order_of_its_own():
    orders = [shuffled(50, 0, 0), shuffled(50, 0, 1), shuffled(50, 1, 0)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 3
    assert shuffled(50, 0, 1).tobytes() == orders[1].tobytes()
