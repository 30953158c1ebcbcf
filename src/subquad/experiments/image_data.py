"""The images that an experiment's options name."""

from dataclasses import replace
from pathlib import Path

from subquad.data.images import (
    ImageSet,
    downsample2x2,
    embedded_mnist,
    load_cifar10,
    load_fashion_mnist,
    load_mnist,
)
from subquad.experiments.options import ImageData


def load_images(data: ImageData, folder: Path | None, *, half_size: bool = False) -> ImageSet:
    """Return the data set, its images shrunk to half their sides if ``half_size``.

    Raises:
        FileNotFoundError: if its files are not there.
        ValueError: if a file is not what it should be, or ``folder`` is missing for CIFAR-10.
    """
    if data == "embedded-mnist":
        images = embedded_mnist()
    elif data == "cifar10":
        if folder is None:
            raise ValueError(
                "cifar10 needs --data-folder, the folder of the data set's binary files, got none"
            )
        images = load_cifar10(folder)
    else:
        images = (load_mnist if data == "mnist" else load_fashion_mnist)(folder)
    if not half_size:
        return images
    return replace(
        images,
        train=downsample2x2(images.train),
        test=downsample2x2(images.test),
        source=images.source + "; shrunk by 2 x 2 means",
    )
