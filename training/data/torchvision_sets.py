"""Well-known image sets through torchvision: from the disk, or downloaded if not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from mmf_deploy.errors import ConfigError, nearest, require
from mmf_deploy.spec import SampleSpec

from .base import ResidentImages, Source
from .cifar_files import read_cifar
from .decode import Pixels, to_pixels
from .loading import class_labels, map_in_threads
from .torchvision_layouts import SETS, ImageSet


class TorchvisionConfig(BaseModel):
    """``data:`` with ``source: torchvision``.

    Attributes:
        name: CIFAR10, CIFAR100, SVHN, STL10, MNIST or FashionMNIST.
        root: the folder that torchvision keeps sets in.
        split: which part, for example train or test.
        download: auto: when the files are not there; never.
        size: side in pixels to resize to; None keeps the images' own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    root: Path = Path("data")
    split: str = "train"
    download: Literal["auto", "never"] = "auto"
    size: int | None = Field(None, ge=1)


def load(config: TorchvisionConfig) -> Source:
    """All images of one split, in memory.

    Raises:
        ConfigError: no such set or split, files that are missing and cannot be downloaded,
            or that are damaged.
    """
    if config.name not in SETS:
        raise ConfigError(
            f"data.name {config.name!r}{nearest(config.name, SETS)}: no such set; "
            f"there are {', '.join(SETS)}"
        )
    known = SETS[config.name]
    if config.split not in known.files:
        raise ConfigError(
            f"data.split {config.split!r}{nearest(config.split, known.files)}: {config.name} has "
            f"{', '.join(known.files)}"
        )
    folder = config.root.expanduser() / known.folder
    _make_present(config, known, folder)
    try:
        images, labels, names = _read(config, known, folder)
        if images.dtype != np.uint8 or images.shape[3] != known.channels or not len(images):
            raise ValueError(f"images are {images.dtype} {list(images.shape)}")
        if len(labels) != len(images):
            raise ValueError(f"{len(labels)} labels of {len(images)} images")
    except Exception as e:  # readers of pickles, .mat and raw files each have their own
        files = ", ".join(known.files[config.split])
        reason = " ".join(f"{type(e).__name__}: {e}".split())
        raise ConfigError(
            f"{folder}: damaged, or not {config.name} ({reason}); replace {files}"
        ) from e
    return _source(config, known, images, labels, names)


def _source(
    config: TorchvisionConfig,
    known: ImageSet,
    images: Pixels,
    raw_labels: Any,
    names: tuple[str, ...],
) -> Source:
    labels, classes = None, 0
    if config.split not in known.unlabelled:
        labels, classes = class_labels(torch.as_tensor(raw_labels), config.name, known.classes)
    if config.size is not None and images.shape[1:3] != (config.size, config.size):
        images = _resized(images, config.size)
    spec = SampleSpec(
        shape=(known.channels, *images.shape[1:3]),
        classes=classes,
        class_names=names if len(names) == classes else (),
    )
    return ResidentImages(torch.from_numpy(images), labels, spec)


def _make_present(config: TorchvisionConfig, known: ImageSet, folder: Path) -> None:
    def missing() -> list[str]:
        return [name for name in known.files[config.split] if not (folder / name).is_file()]

    reason = ""
    if missing() and config.download == "auto":
        print(f"{config.name} is not in {folder}: downloading it")
        try:
            download(config, known)
        except Exception as e:  # no network, no space, a wrong checksum: each has its own
            reason = "; the download failed: " + " ".join(f"{type(e).__name__}: {e}".split())
    if lacking := missing():
        raise ConfigError(
            f"{config.name}: {folder} has no {', '.join(lacking)}; put the files there"
            + (reason or ", or set data.download=auto")
        )


def download(config: TorchvisionConfig, known: ImageSet) -> None:
    """Download a set to ``config.root``; torchvision compares it with its published checksums."""
    _construct(getattr(_torchvision(), config.name), config, known, download=True)


def _read(
    config: TorchvisionConfig, known: ImageSet, folder: Path
) -> tuple[Pixels, Any, tuple[str, ...]]:
    """uint8 [N, H, W, C], labels [N], class names of files that are there."""
    if config.name.startswith("CIFAR"):
        return read_cifar(folder, known.files[config.split])
    base = getattr(_torchvision(), config.name)
    # that the split's files are there is known; torchvision would ask for all splits' files,
    # and compare checksums of gigabytes
    there = {name: lambda self: True for name in ("_check_integrity", "_check_exists")}
    unchecked = type(config.name, (base,), there)
    data = _construct(unchecked, config, known, download=False)
    images = np.asarray(data.data)
    if known.key == "train":
        return images[..., None], data.targets, known.class_names
    names = known.class_names or tuple(getattr(data, "classes", ()))
    return images.transpose(0, 2, 3, 1), data.labels, names


def _construct(kind: Any, config: TorchvisionConfig, known: ImageSet, download: bool) -> Any:
    split = config.split == "train" if known.key == "train" else config.split
    root = str(config.root.expanduser())
    return kind(root, **{known.key: split}, download=download)


def _torchvision() -> Any:
    return require("torchvision.datasets", "train")


def _resized(images: Pixels, size: int) -> Pixels:
    """uint8 [N, size, size, C]."""
    mode = "L" if images.shape[3] == 1 else "RGB"

    def resize(pixels: Pixels) -> Pixels:
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if mode == "L" else pixels))
        return to_pixels(image, size, mode)

    resized = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    done = map_in_threads(resize, images, len(images), "resizing")
    for index, pixels in enumerate(done):
        resized[index] = pixels
    return resized


Config = TorchvisionConfig
