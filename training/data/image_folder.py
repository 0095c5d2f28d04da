"""A folder of images of one's own: any size and format, one sub-folder a class if there are any."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from mmf_deploy.errors import ConfigError

from .base import Source
from .image_samples import ImageOptions, Sample
from .image_sets import load_images

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
)


class ImageFolderConfig(ImageOptions):
    """``data:`` with ``source: folder``; the other keys are those of ``ImageOptions``.

    Attributes:
        path: the folder.
        classes: ``folders``: each sub-folder is a class; ``none``: no classes, sub-folders are
            searched as well; ``auto``: folders if there are any, otherwise none.
        size: side in pixels of the square images to train on.
    """

    path: Path
    classes: Literal["auto", "folders", "none"] = "auto"
    size: int = Field(ge=1)


class _Files:
    """Samples of a list of (path, class)."""

    def __init__(self, root: Path, files: list[tuple[Path, int | None]]) -> None:
        self._root, self._files = root, files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        path, label = self._files[index]
        return Sample(str(path.relative_to(self._root)), path, label)


def load(config: ImageFolderConfig) -> Source:
    """Every image below the folder, in the order of their names.

    Raises:
        ConfigError: no such folder, no images, images without a class beside folders of
            classes, or too many unreadable ones.
    """
    root = config.path.expanduser()
    _check_folder(root)
    folders = [] if config.classes == "none" else _class_folders(root)
    if not folders:
        if config.classes == "folders":
            raise ConfigError(
                f"{root}: no sub-folders, expected one for each class; "
                "move the images into them, or set data.classes=none"
            )
        return load_images(_Files(root, [(p, None) for p in _found(root, root)]), config, str(root))
    files: list[tuple[Path, int | None]] = []
    for label, folder in enumerate(folders):
        files += [(path, label) for path in _found(folder, root)]
    names = tuple(folder.name for folder in folders)
    return load_images(_Files(root, files), config, str(root), class_names=names)


def _check_folder(root: Path) -> None:
    if not root.exists():
        raise ConfigError(f"data.path {root}: no such folder (from {Path.cwd()})")
    if not root.is_dir():
        raise ConfigError(f"data.path {root}: a file, expected a folder of images")


def _class_folders(root: Path) -> list[Path]:
    entries = sorted(_entries(root), key=lambda path: path.name)
    folders = [path for path in entries if path.is_dir()]
    beside = [path.name for path in entries if path not in set(folders) and _is_image(path)]
    if folders and beside:
        raise ConfigError(
            f"{root}: {len(beside):,} images (such as {beside[0]}) lie beside the class folders "
            f"(such as {folders[0].name}) and so have no class; move them into one, "
            "or set data.classes=none"
        )
    return folders


def _entries(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as e:
        raise ConfigError(f"{folder}: cannot be read: {e.strerror}") from None


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _found(folder: Path, root: Path) -> list[Path]:
    """All images below a folder, sorted; hidden files and folders left out."""

    def refuse(error: OSError) -> None:
        raise ConfigError(f"{error.filename}: cannot be read: {error.strerror}") from None

    found: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent, name) for name in files if not name.startswith("."))
        found += [path for path in paths if _is_image(path)]
    if not found:
        what = "no images" if folder == root else "a class folder without images"
        raise ConfigError(
            f"{folder}: {what}; expected files such as .jpg, .png or .webp"
            + ("" if folder == root else ", or remove the folder")
        )
    return sorted(found)


Config = ImageFolderConfig
