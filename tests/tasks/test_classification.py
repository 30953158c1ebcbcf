import numpy as np
import pytest
import torch
from torch import nn

from helpers import assert_near
from subquad.data.image_set import ImageSet
from subquad.tasks.classification import Augmentation, ClassificationTask
from subquad.tasks.task import Task
from subquad.tasks.training import TrainConfig, fit


def images(count=20, side=6, channels=3):
    rng = np.random.default_rng(0)
    labels = (np.arange(count) % 4).astype(np.uint8)
    drawn = rng.integers(0, 60, (count, side, side, channels)).astype(np.uint8)
    drawn[np.arange(count), labels] = 250  # a bright row tells the class
    return ImageSet(
        train=drawn, train_labels=labels, test=drawn[:8], test_labels=labels[:8], source="drawn"
    )


def linear(side=6, channels=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(side * side * channels, 4))


def task(**options):
    return ClassificationTask(linear(), images(), **{"batch_size": 5, **options})


def test_it_is_a_task_and_batches_are_functions_of_their_number():
    one, two = task(augmentation=Augmentation(shift=2, mirror=True)), task()
    assert isinstance(one, Task)
    for step in (7, 0, 3):
        again = task(augmentation=Augmentation(shift=2, mirror=True))
        for a, b in zip(one.batch(step), again.batch(step), strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(one.batch(0)[0], two.batch(0)[0])
    assert torch.equal(one.batch(0)[1], two.batch(0)[1])  # the same images, varied
    assert not torch.equal(task(seed=1).batch(0)[1], two.batch(0)[1])


def test_each_pass_takes_every_image_once():
    found = task(batch_size=10)
    for epoch in range(2):
        seen = torch.cat([found.batch(2 * epoch + i)[0] for i in range(2)])
        rows = {tuple(x.flatten().tolist()) for x in seen}
        assert len(rows) == 20


def test_images_have_mean_0_and_variance_1_a_channel():
    x, labels = task(batch_size=20).batch(0)
    assert x.shape == (20, 3, 6, 6)
    assert x.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert_near(x.mean((0, 2, 3)) + 1, torch.ones(3), 1e-5)
    assert_near(x.var((0, 2, 3), correction=0), torch.ones(3), 1e-5)


def test_shifts_and_mirrors():
    picture = np.zeros((400, 5, 5, 1), np.uint8)
    picture[:, 2, 1] = 9
    moved = Augmentation(shift=1)(picture, np.random.default_rng(0))
    places = {tuple(np.argwhere(x[..., 0])[0]) for x in moved}
    assert places == {(y, x) for y in (1, 2, 3) for x in (0, 1, 2)}
    mirrored = Augmentation(mirror=True)(picture, np.random.default_rng(0))
    share = (mirrored[:, 2, 3, 0] == 9).mean()
    assert 0.4 < share < 0.6
    assert ((mirrored[:, 2, 3, 0] == 9) ^ (mirrored[:, 2, 1, 0] == 9)).all()
    assert Augmentation()(picture, np.random.default_rng(0)) is picture
    gone = np.zeros((1, 5, 5, 1), np.uint8)
    assert Augmentation(shift=4, mirror=True)(gone, np.random.default_rng(0)).shape == gone.shape


def test_loss_and_evaluation_by_hand():
    found = task(label_smoothing=0.2, batch_size=4)
    x, labels = found.batch(0)
    log_p = found.model(x).log_softmax(1)
    right = log_p[torch.arange(4), labels]
    expected = -(0.8 * right + 0.2 * log_p.mean(1)).mean()
    assert_near(found.loss(x, labels), expected, 1e-6)
    measured = task(evaluation_batch=3).evaluate(full=True)
    whole = task(evaluation_batch=100)
    logits = whole.model(whole.prepared(images().test))
    wanted = torch.from_numpy(images().test_labels.astype(np.int64))
    assert measured["loss"] == pytest.approx(
        nn.functional.cross_entropy(logits, wanted).item(), rel=1e-6
    )
    assert measured["accuracy"] == float((logits.argmax(1) == wanted).float().mean())
    quick = task(quick_images=3)
    assert quick.evaluate(full=False) == quick.evaluate(full=False)
    assert quick.model.training


def test_it_learns(tmp_path):
    found = task(augmentation=Augmentation(mirror=True), batch_size=10)
    config = TrainConfig(max_steps=60, batch_size=10, optimizer="adamw", lr=1e-2, device="cpu")
    fit(found, config, tmp_path, quiet=True)
    assert found.evaluate(full=True)["accuracy"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"quick_images": 0}, "quick_images must be at least 1, got 0"),
        ({"evaluation_batch": 0}, "evaluation_batch must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, got 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        task(**options)
    with pytest.raises(ValueError, match="shift must be at least 0, got -1"):
        Augmentation(shift=-1)


def test_normalisation_by_half_and_options_in_the_identity():
    found = task(normalization="half", batch_size=20)
    x, _ = found.batch(0)
    assert x.min() == -1
    assert found.mean.tolist() == found.std.tolist() == [0.5] * 3
    assert found.identity["normalization"] == "half"
    plain = task().identity
    assert set(plain) == {
        "name", "seed", "images", "checksum", "augmentation", "label_smoothing",
    }  # fmt: skip
    assert plain["augmentation"] == {"shift": 0, "mirror": False}


def test_channels_last_changes_the_layout_and_not_the_numbers():
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))

    losses, grads = [], []
    for channels_last in (False, True):
        found = ClassificationTask(network(), images(), batch_size=5, channels_last=channels_last)
        x, labels = found.batch(0)
        for tensor in (x, found.model[0].weight):
            assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last
        losses.append(found.loss(x, labels))
        losses[-1].backward()
        grads.append(found.model[0].weight.grad)
    assert_near(losses[0], losses[1], 1e-6)
    assert_near(grads[0], grads[1], 1e-5)


def test_top_five_is_measured_where_asked_for():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(108, 7))
    found = ClassificationTask(network, images(), batch_size=5, top_k=(1, 5))
    first = found.evaluate(full=True)
    assert found.evaluate(full=True) == first  # counts begin anew
    likeliest = network(found.prepared(images().test)).topk(5, 1).indices
    wanted = torch.from_numpy(images().test_labels.astype(np.int64))
    assert first["accuracy_top5"] == float((likeliest == wanted[:, None]).any(1).float().mean())


def test_crops_train_and_middles_test():
    found = task(augmentation=Augmentation(crop=4), evaluation_batch=2)
    x, _ = found.batch(0)
    assert x.shape == (5, 3, 4, 4)
    whole = task(batch_size=20)
    expected = whole.prepared(images().test)[:, :, 1:5, 1:5]
    assert torch.equal(found.prepared(images().test), expected)
    with pytest.raises(ValueError, match="crop must be at most the images' shorter side 6, got 7"):
        task(augmentation=Augmentation(crop=7))
