"""The image data sets, by name: one place to import them from."""

from subquad.data.cifar10 import load_cifar10
from subquad.data.image_set import ImageSet, downsample2x2
from subquad.data.mnist import embedded_mnist, load_fashion_mnist, load_mnist

__all__ = [
    "ImageSet",
    "downsample2x2",
    "embedded_mnist",
    "load_cifar10",
    "load_fashion_mnist",
    "load_mnist",
]
