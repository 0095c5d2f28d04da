"""Folders of images of one's own, and how any image becomes a sample."""

import os
import time

import numpy as np
import pytest
import torch
from mmf_deploy.training.data import image_folder, lazy_images, loading
from mmf_deploy.training.data.decode import UnreadableImageError, decode
from mmf_deploy.training.read_recipe import load_config
from PIL import Image

from mmf_deploy.errors import ConfigError, TrainingError


def save(path, pixels, **options):
    """Write uint8 [H, W] or [H, W, C] as an image; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path, **options)
    return path


def plain(colour, height=8, width=8):
    return np.full(
        (height, width, len(colour)) if len(colour) > 1 else (height, width), colour, "u1"
    )


RED, GREY = (255, 0, 0), (128,)


def load(path, **options):
    return image_folder.load(image_folder.Config(path=path, **{"size": 8, **options}))


def everything(source):
    return source.batch(torch.arange(len(source)))


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path):
    save(tmp_path / "zebra" / "a.png", plain(RED))
    save(tmp_path / "ant" / "deep" / "b.png", plain((0, 255, 0)))
    save(tmp_path / "ant" / "c.png", plain((0, 0, 255)))
    source = load(tmp_path)
    assert source.spec.class_names == ("ant", "zebra")
    batch = everything(source)
    assert batch.label.tolist() == [0, 0, 1]
    assert batch.x0[:, :, 0, 0].tolist() == [[-1, -1, 1], [-1, 1, -1], [1, -1, -1]]


def test_without_sub_folders_or_with_classes_none_there_are_no_labels(tmp_path):
    save(tmp_path / "a.png", plain(RED))
    assert everything(load(tmp_path)).label is None
    save(tmp_path / "sub" / "b.png", plain(RED))
    source = load(tmp_path, classes="none")
    assert (len(source), source.spec.classes) == (2, 0)


def test_hidden_and_other_files_are_ignored(tmp_path):
    save(tmp_path / "a" / "1.png", plain(RED))
    save(tmp_path / "a" / ".thumbs" / "1.png", plain(RED))
    save(tmp_path / ".cache" / "1.png", plain(RED))
    (tmp_path / "a" / ".hidden.png").write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_text("a note")
    (tmp_path / "readme.md").write_text("a note")
    source = load(tmp_path)
    assert (len(source), source.spec.class_names) == (1, ("a",))


def test_any_size_is_cropped_to_its_central_square_and_resized(tmp_path):
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = RED
    save(tmp_path / "wide.png", wide)
    save(tmp_path / "tall.png", wide.transpose(1, 0, 2))
    batch = everything(load(tmp_path, size=8))
    assert batch.x0.shape == (2, 3, 8, 8)
    assert torch.equal(batch.x0[:, 0], torch.ones(2, 8, 8))


def test_shrinking_averages_so_that_a_fine_pattern_becomes_its_mean(tmp_path):
    pattern = np.indices((64, 64)).sum(0) % 2 * 255
    save(tmp_path / "checks.png", pattern.astype(np.uint8))
    x0 = everything(load(tmp_path, size=8)).x0
    assert x0.abs().max() < 0.02


def test_images_that_are_too_small_are_enlarged_and_said(tmp_path):
    save(tmp_path / "a.png", plain(RED, 4, 4))
    save(tmp_path / "b.png", plain(RED, 16, 16))
    source = load(tmp_path)
    assert source.notes == ("1 of 2 images are smaller than 8×8 and were enlarged",)


def test_grey_stays_grey_and_grey_among_colour_becomes_colour(tmp_path):
    save(tmp_path / "a.png", plain(GREY))
    source = load(tmp_path)
    assert (source.spec.shape, source.notes) == ((1, 8, 8), ())
    save(tmp_path / "b.png", plain(RED))
    source = load(tmp_path)
    assert source.spec.shape == (3, 8, 8)
    assert source.notes == ("1 of 2 images are grey; converted to colour",)
    assert everything(source).x0[0, :, 0, 0].tolist() == pytest.approx([0.00392] * 3, abs=1e-4)
    source = load(tmp_path, channels=1)
    assert source.spec.shape == (1, 8, 8)
    assert source.notes == ("1 of 2 images are in colour; converted to grey",)


def corner(path):
    """The red channel of the four corners of an image decoded at its own size."""
    pixels, _ = decode(path, None, 3)
    return pixels[[0, 0, -1, -1], [0, -1, 0, -1], 0].tolist()


@pytest.mark.parametrize("size", [None, 8])
def test_the_orientation_that_a_camera_noted_is_applied(tmp_path, size):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: what is stored as top is right
    path = save(tmp_path / "turned.png", pixels, exif=exif)
    upright, _ = decode(path, size, 3)
    assert upright[0, [0, -1], 0].tolist() == [0, 255]
    assert upright[-1, [0, -1], 0].tolist() == [0, 255]


def test_the_header_has_the_size_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "turned.jpg", plain(RED, 10, 20), exif=exif)
    pixels, header = decode(path, None, None)
    assert pixels.shape == (20, 10, 3)
    assert header == (20, 10, True)


def test_what_is_transparent_becomes_white(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:] = (0, 0, 0, 255)
    assert corner(save(tmp_path / "a.png", pixels)) == [255, 0, 255, 0]
    palette = Image.fromarray(plain(RED)).quantize(2)
    palette.info["transparency"] = 0
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((0, 0)))
    assert decode(tmp_path / "p.png", None, 3)[0].min() == 255


def test_palettes_bits_and_cmyk_become_colours(tmp_path):
    Image.fromarray(plain(RED)).quantize(4).save(tmp_path / "p.gif")
    assert decode(tmp_path / "p.gif", None, None)[0][0, 0].tolist() == [255, 0, 0]
    Image.fromarray(plain(RED)).convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    assert abs(decode(tmp_path / "c.jpg", None, None)[0][0, 0].astype(int) - RED).max() < 8
    Image.fromarray(plain(GREY)).convert("1", dither=0).save(tmp_path / "b.png")
    assert decode(tmp_path / "b.png", None, None)[0].shape == (8, 8, 1)


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        pixels, header = decode(save(tmp_path / name, levels), None, None)
        assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]
        assert not header.colour


def test_floating_point_images_are_refused_as_their_range_is_unknown(tmp_path):
    Image.new("F", (4, 4)).save(tmp_path / "f.tif")
    with pytest.raises(UnreadableImageError, match="no fixed range"):
        decode(tmp_path / "f.tif", None, None)


def many(path, count=40):
    for number in range(count):
        level = 255 * number // count
        save(path / f"{number:03d}.png", plain((level, 0, 255 - level)))


def truncate(path):
    """Cut the pixels off, leave the header."""
    path.write_bytes(path.read_bytes()[:45])


@pytest.mark.parametrize("resident_mb", [1, 0])
def test_a_corrupt_image_among_many_is_left_out_and_named(tmp_path, resident_mb):
    many(tmp_path)
    (tmp_path / "007.png").write_bytes(b"no image at all")
    source = load(tmp_path, resident_mb=resident_mb)
    assert len(source) == 39
    assert source.notes == ("1 of 40 images cannot be read: 007.png; they are left out",)
    assert everything(source).x0.shape == (39, 3, 8, 8)


def test_labels_stay_with_their_images_when_one_is_left_out(tmp_path):
    many(tmp_path / "a", 20)
    many(tmp_path / "b", 20)
    (tmp_path / "a" / "000.png").write_bytes(b"")
    assert everything(load(tmp_path)).label.tolist() == [0] * 19 + [1] * 20


@pytest.mark.parametrize("resident_mb", [1, 0])
def test_too_many_corrupt_images_are_refused_with_what_came(tmp_path, resident_mb):
    many(tmp_path, 10)
    for number in range(4):
        (tmp_path / f"{number:03d}.png").write_bytes(b"nothing")
    message = r"4 of 10 images cannot be read: 000.png, 001.png, 002.png, … \(.*max_skip_fraction"
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, resident_mb=resident_mb)
    assert len(load(tmp_path, resident_mb=resident_mb, max_skip_fraction=0.5)) == 6


def test_images_on_demand_are_the_same_as_in_memory(tmp_path):
    many(tmp_path / "a", 20)
    save(tmp_path / "b" / "grey.png", plain(GREY, 30, 20))
    resident, lazy = load(tmp_path), load(tmp_path, resident_mb=0)
    assert isinstance(lazy, lazy_images.LazyImages)
    assert (lazy.spec, lazy.notes) == (resident.spec, resident.notes)
    indices = torch.tensor([20, 3, 3, 0, 19])
    for ours, theirs in zip(lazy.batch(indices), resident.batch(indices), strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)


def test_an_image_that_breaks_on_demand_is_replaced_by_the_next_and_counted(tmp_path):
    many(tmp_path / "a", 3)
    many(tmp_path / "b", 3)
    truncate(tmp_path / "a" / "002.png")
    source = load(tmp_path, resident_mb=0)
    assert (len(source), source.notes) == (6, ())
    batch = source.batch(torch.tensor([2, 3, 2]))
    assert torch.equal(batch.x0[0], batch.x0[1])
    assert batch.label.tolist() == [1, 1, 1]
    assert torch.equal(source.batch(torch.tensor([2])).x0, batch.x0[:1])
    assert source.notes == ("1 images cannot be decoded; others take their place",)


def test_files_that_disappear_end_the_run_with_one_line(tmp_path):
    many(tmp_path, 3)
    source = load(tmp_path, resident_mb=0)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(TrainingError, match="can no longer be read"):
        source.batch(torch.tensor([0]))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda path: None, {"path": "missing"}, "no such folder"),
        (lambda path: save(path / "a.png", plain(RED)), {"path": "a.png"}, "a file, expected a"),
        (lambda path: None, {}, "no images; expected files such as .jpg"),
        (lambda path: (path / "a").mkdir(), {}, "a class folder without images"),
        (lambda path: save(path / "a.png", plain(RED)), {"classes": "folders"}, "no sub-folders"),
    ],
)
def test_a_folder_that_will_not_do_is_refused_in_one_line(tmp_path, make, options, message):
    make(tmp_path)
    path = tmp_path / options.pop("path", "")
    with pytest.raises(ConfigError, match=message) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("classes", ["auto", "folders"])
def test_images_beside_class_folders_have_no_label_and_are_refused(tmp_path, classes):
    save(tmp_path / "cats" / "a.png", plain(RED))
    save(tmp_path / "stray.png", plain(RED))
    with pytest.raises(ConfigError, match=r"1 images \(such as stray.png\) lie beside the class"):
        load(tmp_path, classes=classes)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_without_permission_is_named(tmp_path):
    save(tmp_path / "a" / "locked" / "a.png", plain(RED))
    (tmp_path / "a" / "locked").chmod(0)
    try:
        with pytest.raises(ConfigError, match="locked: cannot be read"):
            load(tmp_path)
    finally:
        (tmp_path / "a" / "locked").chmod(0o755)


def test_a_folder_that_the_system_refuses_is_named(tmp_path, monkeypatch):
    save(tmp_path / "a" / "a.png", plain(RED))

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(image_folder.os, "scandir", refuse)
    with pytest.raises(ConfigError, match="a: cannot be read: Permission denied"):
        load(tmp_path)


def test_the_size_is_required_and_unknown_keys_name_the_nearest(tmp_path):
    config = load_config("digits", ["evaluate=null"])
    for data, message in [
        ({}, "key 'data.size' is missing"),
        ({"size": 8, "classses": "none"}, "did you mean 'data.classes'"),
        ({"size": 0}, "data.size = 0"),
        ({"size": 8, "channels": 2}, "data.channels"),
    ]:
        update = {"data": {"source": "folder", "path": str(tmp_path), **data}}
        with pytest.raises(ConfigError, match=message):
            config.model_copy(update=update).load_data()


def test_loading_that_takes_long_shows_what_is_left(capsys, monkeypatch):
    monkeypatch.setattr(loading, "SHOW_AFTER_S", 0.0)
    monkeypatch.setattr("mmf_deploy.progress.LINE_EVERY_S", 0.0)
    monkeypatch.setattr(loading, "CHUNK", 5)

    def slow(number):
        time.sleep(0.002)
        return number * number

    done = list(loading.map_in_threads(slow, range(32), 32, "decoding"))
    assert done == [n * n for n in range(32)]
    out = capsys.readouterr().out
    assert "decoding: 10/32 images" in out
    assert "left" in out
