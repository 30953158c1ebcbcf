import logging

import pytest
import torch

from subquad.models import PixelModel, memory, pixel_model

SIZES = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 16}
SEQ_LEN = 12
mixers = pytest.mark.parametrize("mixer", ["linear", "softmax"])


def model(mixer="linear", seq_len=SEQ_LEN, **options):
    made = PixelModel(seq_len, mixer=mixer, **{**SIZES, **options})
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return made.double().eval()


@mixers
def test_images_come_from_nothing_and_differ(mixer):
    images = model(mixer).generate(20, seed=0)
    assert images.shape == (20, SEQ_LEN)
    assert images.dtype == torch.uint8
    assert len(images.unique(dim=0)) == 20


@mixers
@pytest.mark.parametrize("length", [1, 5, SEQ_LEN - 1, SEQ_LEN])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_a_prefix_is_kept_as_given(mixer, length, dtype):
    prefix = torch.randint(256, (3, length)).to(dtype)
    images = model(mixer).generate(3, prefix=prefix, seed=0)
    assert torch.equal(images[:, :length], prefix.to(torch.uint8))


@mixers
@pytest.mark.parametrize("positions", ["sinusoidal-concat", "learned", "rotary"])
def test_steps_pick_what_a_full_forward_at_each_position_picks(mixer, positions, monkeypatch):
    def greedy(parameters, uniforms, temperature=1.0):
        logits, means, _ = parameters.chunk(3, dim=-1)
        mean = means.gather(-1, logits.argmax(-1, keepdim=True)).squeeze(-1)
        return ((mean.sin() + 1) * 127.5).round().long()

    monkeypatch.setattr(pixel_model, "logistic_mixture_sample", greedy)
    made = model(mixer, seq_len=30, positions=positions)
    prefix = torch.randint(256, (3, 4))
    expected = torch.zeros(3, 30, dtype=torch.long)
    expected[:, :4] = prefix
    for t in range(4, 30):
        expected[:, t] = greedy(made(expected)[:, t - 1], None)
    assert len(expected[0, 4:].unique()) > 5
    assert torch.equal(made.generate(3, prefix=prefix), expected.to(torch.uint8))


@mixers
@pytest.mark.parametrize("max_batch", [1, 3, 7])
def test_a_seed_gives_the_same_images_however_the_batch_is_split(mixer, max_batch):
    made = model(mixer, num_classes=3)
    prefix, labels = torch.randint(256, (7, 2)), torch.arange(7) % 3
    for given in ({}, {"prefix": prefix}):
        expected = made.generate(7, seed=5, labels=labels, **given)
        split = made.generate(7, seed=5, labels=labels, max_batch=max_batch, **given)
        assert torch.equal(split, expected)
    fewer = made.generate(4, seed=5, labels=labels[:4])
    assert torch.equal(fewer, made.generate(7, seed=5, labels=labels)[:4])


def test_seeds_have_no_image_in_common():
    made, first = model(), None
    for seed in (0, 1, 2, -1):
        images = {tuple(image) for image in made.generate(30, seed=seed).tolist()}
        assert len(images) == 30
        first = images if first is None else first
        assert seed == 0 or not images & first


def test_without_a_seed_the_global_generator_decides():
    made = model()
    torch.manual_seed(3)
    first, second = made.generate(2), made.generate(2)
    torch.manual_seed(3)
    assert torch.equal(made.generate(2), first)
    assert not torch.equal(first, second)


def test_a_seed_leaves_the_global_generator_alone():
    made = model()
    before = torch.get_rng_state()
    made.generate(2, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_first_byte_follows_the_histogram_in_every_dtype(dtype):
    made = model().to(dtype)
    made.first_byte_counts.zero_()
    made.first_byte_counts[7], made.first_byte_counts[255] = 300, 100
    first = made.generate(200, seed=0)[:, 0]
    assert set(first.tolist()) == {7, 255}
    assert 120 < (first == 7).sum() < 180


def test_a_byte_that_was_never_first_is_not_drawn_at_the_borders_either(monkeypatch):
    made = model()
    made.first_byte_counts.zero_()
    made.first_byte_counts[7:9] = 1
    for uniform, byte in ((0.0, 7), (0.5, 8), (1 - 2**-24, 8)):
        draws = torch.full((1, SEQ_LEN, 2), uniform)
        monkeypatch.setattr(pixel_model, "draw_uniforms", lambda *_, draws=draws: draws)
        assert made.generate(1)[0, 0] == byte


def test_a_low_temperature_gives_the_likeliest_image_and_a_high_one_a_wide_spread():
    made, prefix = model(), torch.full((8, 1), 100)
    cold = made.generate(8, prefix=prefix, temperature=1e-6, seed=0)
    assert len(cold.unique(dim=0)) == 1
    spread = [
        made.generate(8, prefix=prefix, temperature=t, seed=0).double().std(0).mean()
        for t in (0.05, 1.0)
    ]
    assert 0 < spread[0] < spread[1]


def test_labels_condition_what_is_drawn():
    made, prefix = model(num_classes=2), torch.full((8, 1), 100)
    with torch.no_grad():
        made.class_embedding.weight.mul_(20)
    zeros, ones = (
        made.generate(8, prefix=prefix, labels=torch.full((8,), c), seed=0, temperature=1e-6)
        for c in (0, 1)
    )
    assert not torch.equal(zeros, ones)


@mixers
@pytest.mark.parametrize("prefix_len", [None, 5, SEQ_LEN])
@pytest.mark.parametrize("max_batch", [None, 2])
def test_progress_is_told_to_the_end(mixer, prefix_len, max_batch):
    calls = []
    prefix = None if prefix_len is None else torch.randint(256, (5, prefix_len))
    model(mixer).generate(
        5, prefix=prefix, seed=0, max_batch=max_batch, progress=lambda *call: calls.append(call)
    )
    done, total = zip(*calls, strict=True)
    assert set(total) == {5 * SEQ_LEN}
    assert list(done) == sorted(done)
    assert done[-1] == 5 * SEQ_LEN


@mixers
def test_what_does_not_fit_in_memory_is_split_and_a_line_says_so(mixer, monkeypatch, caplog):
    made = model(mixer)
    expected = made.generate(9, seed=1)
    assert caplog.records == []
    one = memory.full_state_bytes(made.decoder, SEQ_LEN) + 4 * 8 * 48  # the widest map has 48 rows
    monkeypatch.setattr(memory, "free_memory", lambda device: int(2 * 4.5 * one))
    with caplog.at_level(logging.WARNING, logger="subquad"):
        images = made.generate(9, seed=1)
    assert [record.getMessage() for record in caplog.records] == [
        "generating 9 images in batches of 4"
    ]
    assert torch.equal(images, expected)


@mixers
def test_at_least_one_image_is_drawn_at_once_and_all_where_memory_is_unknown(mixer, monkeypatch):
    made = model(mixer)
    for free, size in ((0, 1), (10**12, 9), (None, 9)):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        assert memory.generation_batch(made.decoder, 9, seq_len=SEQ_LEN, prefix_len=1) == size


def test_free_memory_is_measured():
    free = memory.free_memory(torch.device("cpu"))
    assert free is None or free > 2**20


def test_what_torch_holds_unused_on_a_gpu_is_free(monkeypatch):
    for name, value in (
        ("mem_get_info", (1000, 9000)), ("memory_reserved", 500), ("memory_allocated", 200)
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.free_memory(torch.device("cuda")) == 1300


@pytest.mark.parametrize(
    ("system", "group", "free"),
    [(7, 5, 5), (5, 7, 5), (5, None, 5), (None, 5, 5), (None, None, None)],
)
def test_the_lower_of_two_limits_counts(monkeypatch, system, group, free):
    monkeypatch.setattr(memory, "_system_memory", lambda: system)
    monkeypatch.setattr(memory, "_group_memory", lambda: group)
    assert memory.free_memory(torch.device("cpu")) == free


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [
        ("900\n", "600\n", 350),
        ("500\n", "600\n", 0),
        ("max\n", "600\n", None),
        (None, "600\n", None),
    ],
)
def test_the_limit_of_a_container(tmp_path, limit, used, free):
    (tmp_path / "memory.current").write_text(used)
    (tmp_path / "memory.stat").write_text("anon 550\ninactive_file 50\n")
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    assert memory._group_memory(tmp_path) == free


def test_a_softmax_image_needs_more_memory_at_full_length_and_a_linear_one_does_not():
    linear, softmax = model("linear").decoder, model("softmax").decoder
    assert memory.full_state_bytes(linear, 10) == memory.full_state_bytes(linear, 1000)
    cache = 2 * 2 * 16 * 8  # layers, k and v, width, bytes
    assert memory.full_state_bytes(softmax, 1000) >= 1000 * cache


def test_generating_keeps_no_graph():
    assert not model().generate(1, seed=0).requires_grad


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, r"batch_size must be an int, got float 2\.0"),
        ({"temperature": 0.0}, ValueError, "temperature must be a finite number above 0, got 0"),
        ({"temperature": float("nan")}, ValueError, "temperature must be a finite .* got nan"),
        ({"temperature": float("inf")}, ValueError, "temperature must be a finite .* got inf"),
        ({"seed": 1.5}, TypeError, r"seed must be an int or None, got float 1\.5"),
        ({"max_batch": 0}, ValueError, "max_batch must be at least 1, got 0"),
        (
            {"prefix": torch.zeros(3, 2).long()}, ValueError,
            r"prefix must have shape \(2, P\) with P from 1 to 12, got \(3, 2\)",
        ),
        ({"prefix": torch.zeros(2, 13).long()}, ValueError, r"prefix must .* got \(2, 13\)"),
        ({"prefix": torch.zeros(2, 0).long()}, ValueError, r"no axis of size 0, got .*\(2, 0\)"),
        ({"prefix": torch.zeros(2, 2)}, TypeError, r"of an integer dtype, got torch\.float32"),
        ({"prefix": torch.full((2, 2), 300)}, ValueError, "must lie from 0 to 255, got 300"),
        ({"labels": torch.zeros(2).long()}, ValueError, "labels must be given exactly when"),
    ],
)  # fmt: skip
def test_errors(options, error, message, unhooked):
    arguments = {"batch_size": 2, **options}
    with pytest.raises(error, match=message):
        model().generate(**arguments)


def test_labels_must_be_one_an_image_and_given_where_there_are_classes(unhooked):
    made = model(num_classes=3)
    for labels, message in ((None, "labels must be given"), (torch.zeros(3).long(), r"\(2,\)")):
        with pytest.raises(ValueError, match=message):
            made.generate(2, labels=labels)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="model must be in evaluation mode to generate"):
        model().train().generate(1)
