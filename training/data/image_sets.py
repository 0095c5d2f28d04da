"""From encoded images to a source: decoded into memory where they fit, on demand where not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mmf_deploy.errors import ConfigError
from mmf_deploy.spec import SampleSpec

from .base import ResidentImages, Source
from .decode import Header, Pixels, UnreadableImageError, decode, read_header
from .image_samples import ImageOptions, Sample, Samples
from .lazy_images import LazyImages
from .loading import class_labels, map_in_threads
from .tally import Tally


def load_images(
    samples: Samples,
    options: ImageOptions,
    where: str,
    classes: int | None = None,
    class_names: tuple[str, ...] = (),
) -> Source:
    """All readable images as a source; labelled when the samples are.

    Args:
        samples: at least one.
        where: what they are, for messages: a path or a name.
        classes: number of classes, where it is known.
        class_names: one name a class, or none.
    Raises:
        ConfigError: too many are unreadable, sizes differ without ``size``, labels are wrong.
    """
    height, width = _shape(samples, options)
    if options.fits(len(samples), height, width):
        return load_resident(_all(samples), len(samples), options, where, classes, class_names)
    return _load_lazy(samples, options, where, classes, class_names)


def _all(samples: Samples) -> Iterator[Sample]:
    return (samples[i] for i in range(len(samples)))


def _shape(samples: Samples, options: ImageOptions) -> tuple[int, int]:
    """(H, W) of the samples: as set, or as the first readable image has it."""
    if options.size is not None:
        return options.size, options.size
    headers = (_header(sample) for sample in _all(samples))
    return next(((h.height, h.width) for h in headers if isinstance(h, Header)), (1, 1))


def _header(sample: Sample) -> Header | str:
    try:
        return read_header(sample.encoded)
    except UnreadableImageError as e:
        return str(e)


def load_resident(
    samples: Iterable[Sample],
    total: int | None,
    options: ImageOptions,
    where: str,
    classes: int | None = None,
    class_names: tuple[str, ...] = (),
) -> Source:
    """Decode every sample into memory; arguments and errors as ``load_images``.

    Args:
        total: how many samples there are; None where only their end tells, and then it is an
            error if they do not fit.
    """

    def decoded(sample: Sample) -> tuple[Sample, Pixels | None, Header | str]:
        try:
            return sample, *decode(sample.encoded, options.size, options.fixed_channels)
        except UnreadableImageError as e:
            return sample, None, str(e)

    tally, labels = Tally(None), list[int]()
    block = _Block(total, options, where)
    for sample, pixels, header in map_in_threads(decoded, samples, total, "decoding"):
        if tally.add(sample, header, options, where) and pixels is not None:
            block.append(pixels)
            labels += [] if sample.label is None else [sample.label]
    tally.check(options, where)
    channels = options.fixed_channels or (1 if tally.grey == tally.read else 3)
    images = block.images(channels)
    known = _labels(labels, where, classes, class_names)
    spec = _spec(tuple(images.shape[1:3]), channels, known, class_names)
    return ResidentImages(images, known[0], spec, tally.notes(options, channels))


class _Block:
    """One block of bytes [N, H, W, C] that images are appended to."""

    def __init__(self, total: int | None, options: ImageOptions, where: str) -> None:
        self._total, self._options, self._where = total, options, where
        self._array: Pixels | None = None
        self._count = 0

    def append(self, pixels: Pixels) -> None:
        """Add uint8 [H, W, C]; grey in a block of colours becomes colour."""
        height, width, _ = pixels.shape
        if self._array is None:
            # memory that is never written to is never taken
            shape = (self._total or 4096, height, width, self._options.fixed_channels or 3)
            self._array = np.empty(shape, np.uint8)
        elif self._count == len(self._array):
            self._array.resize((2 * self._count, *self._array.shape[1:]), refcheck=False)
        if not self._options.fits(self._count + 1, height, width):
            raise ConfigError(
                f"{self._where}: more images than fit into data.resident_mb = "
                f"{self._options.resident_mb:g}; set data.limit={self._count} or lower, "
                "or data.streaming=false"
            )
        self._array[self._count] = pixels
        self._count += 1

    def images(self, channels: int) -> Tensor:
        """uint8 [N, H, W, channels]."""
        if self._array is None:
            raise ConfigError(f"{self._where}: no images")
        array = self._array[: self._count]
        return torch.from_numpy(np.ascontiguousarray(array[..., :channels]))


def _load_lazy(
    samples: Samples,
    options: ImageOptions,
    where: str,
    classes: int | None,
    class_names: tuple[str, ...],
) -> Source:
    tally, labels, readable = Tally(None), list[int](), list[int]()

    def looked_at(index: int) -> tuple[int, Sample, Header | str]:
        sample = samples[index]
        header = _header(sample)
        # its content is not to pile up
        return index, sample._replace(encoded=b""), header

    for index, sample, header in map_in_threads(
        looked_at, range(len(samples)), len(samples), "looking at images"
    ):
        if tally.add(sample, header, options, where):
            readable.append(index)
            labels += [] if sample.label is None else [sample.label]
    tally.check(options, where)
    channels = options.fixed_channels or (1 if tally.grey == tally.read else 3)
    known = _labels(labels, where, classes, class_names)
    height, width = tally.shape or (options.size or 1, options.size or 1)
    return LazyImages(
        lambda index: samples[index].encoded,
        torch.tensor(readable),
        known[0],
        _spec((height, width), channels, known, class_names),
        options.size,
        tally.notes(options, channels),
    )


def _labels(
    labels: Sequence[int], where: str, classes: int | None, class_names: tuple[str, ...]
) -> tuple[Tensor | None, int]:
    if not labels:
        return None, 0
    return class_labels(labels, where, len(class_names) or classes)


def _spec(
    size: tuple[int, ...],
    channels: int,
    known: tuple[Tensor | None, int],
    class_names: tuple[str, ...],
) -> SampleSpec:
    names = class_names if known[1] else ()
    return SampleSpec(shape=(channels, *size), classes=known[1], class_names=names)
