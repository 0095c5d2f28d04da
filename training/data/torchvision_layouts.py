"""Which files the image sets of torchvision consist of, and what is in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ImageSet:
    """Where a set lies below ``root``, and what is in it.

    Attributes:
        folder: below root, may be empty.
        files: names of the files that each split needs.
        key: the constructor's argument for the split: split="train" or train=True.
        channels: of its images.
        classes: how many.
        unlabelled: splits without labels.
    """

    folder: str
    files: dict[str, tuple[str, ...]]
    key: Literal["split", "train"]
    channels: int
    classes: int = 10
    unlabelled: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


_DIGITS = tuple(str(k) for k in range(10))
_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_CIFAR10 = (*(f"data_batch_{k}" for k in range(1, 6)), "batches.meta")
_STL10_TRAIN = ("train_X.bin", "train_y.bin")


def _mnist(prefix: str) -> tuple[str, ...]:
    return (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")


_MNIST = {"train": _mnist("train"), "test": _mnist("t10k")}

SETS = {
    "CIFAR10": ImageSet(
        "cifar-10-batches-py",
        {"train": _CIFAR10, "test": ("test_batch", "batches.meta")},
        "train",
        3,
    ),
    "CIFAR100": ImageSet(
        "cifar-100-python",
        {"train": ("train", "meta"), "test": ("test", "meta")},
        "train",
        3,
        classes=100,
    ),
    "SVHN": ImageSet(
        "",
        {split: (f"{split}_32x32.mat",) for split in ("train", "test", "extra")},
        "split",
        3,
        class_names=_DIGITS,
    ),
    "STL10": ImageSet(
        "stl10_binary",
        {
            "train": _STL10_TRAIN,
            "test": ("test_X.bin", "test_y.bin"),
            "unlabeled": ("unlabeled_X.bin",),
            "train+unlabeled": (*_STL10_TRAIN, "unlabeled_X.bin"),
        },
        "split",
        3,
        unlabelled=("unlabeled", "train+unlabeled"),
    ),
    "MNIST": ImageSet("MNIST/raw", _MNIST, "train", 1, class_names=_DIGITS),
    "FashionMNIST": ImageSet("FashionMNIST/raw", _MNIST, "train", 1, class_names=_CLOTHES),
}
