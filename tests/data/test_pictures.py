import struct
import warnings

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from subquad.data import pictures
from subquad.data.pictures import as_bytes, channels_of, read_picture, square

Image = pytest.importorskip("PIL.Image")

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
GREY = COLOURS[..., 0]


def saved(tmp_path, image, name="x.png", **options):
    path = tmp_path / name
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def read(path, channels=3):
    return as_bytes(read_picture(path), channels)


def test_colours_and_grey_are_what_they_are(tmp_path):
    colours, grey = saved(tmp_path, COLOURS), saved(tmp_path, GREY, "grey.png")
    assert_array_equal(read(colours), COLOURS)
    assert_array_equal(read(grey, 1), GREY[..., None])
    assert_array_equal(read(grey), np.repeat(GREY[..., None], 3, 2))
    assert (channels_of(read_picture(colours)), channels_of(read_picture(grey))) == (3, 1)
    brightness = COLOURS @ [0.299, 0.587, 0.114]
    assert np.abs(read(colours, 1)[..., 0] - brightness).max() <= 1


def test_what_is_see_through_is_laid_on_white(tmp_path):
    alpha = np.zeros((1, 3, 4), np.uint8)
    alpha[0, :, 3] = 0, 255, 51  # clear, black, a fifth black
    found = read(saved(tmp_path, alpha))
    assert found[0].tolist() == [[255] * 3, [0] * 3, [204] * 3]
    grey = Image.fromarray(np.ascontiguousarray(alpha[..., [0, 3]]), "LA")
    path = saved(tmp_path, grey, "la.png")
    assert channels_of(read_picture(path)) == 1
    assert read(path, 1)[0, :, 0].tolist() == [255, 0, 204]


def test_palettes_become_colours_clear_ones_white(tmp_path):
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255, 9, 9, 9])
    picture.putdata([0, 1, 2])
    assert read(saved(tmp_path, picture))[0].tolist() == [[255, 0, 0], [0, 0, 255], [9, 9, 9]]
    path = saved(tmp_path, picture, "clear.png", transparency=1)
    assert read(path)[0].tolist() == [[255, 0, 0], [255, 255, 255], [9, 9, 9]]


def test_one_bit_and_sixteen_bits_become_eight(tmp_path):
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert read(saved(tmp_path, bits), 1).ravel().tolist() == [0, 255]
    sixteen = np.array([[0, 128, 129, 32768, 65535]], np.uint16)
    path = saved(tmp_path, Image.fromarray(sixteen), "16.png")
    assert read(path, 1).ravel().tolist() == [0, 0, 1, 128, 255]
    assert channels_of(read_picture(path)) == 1


def test_the_camera_turn_is_carried_out(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    path = saved(tmp_path, COLOURS, exif=exif)
    assert_array_equal(read(path), np.rot90(COLOURS, -1))


def test_of_an_animation_the_first_picture_is_taken(tmp_path):
    frames = [Image.fromarray(np.full((4, 4), v, np.uint8)) for v in (10, 200)]
    path = saved(tmp_path, frames[0], "x.gif", save_all=True, append_images=frames[1:])
    assert set(read(path).ravel().tolist()) == {10}


def test_the_square_is_the_middle_of_the_resized():
    tall = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 40)).astype(np.uint8))
    whole = np.asarray(tall.resize((10, 20), Image.Resampling.BICUBIC))
    off = np.asarray(square(tall, 10)).astype(int) - whole[5:15]
    assert np.abs(off).max() <= 1  # by rounding between rows and columns
    assert (off == 0).mean() > 0.8
    assert square(tall, 40).size == (40, 40)
    # A thin line would be five million pixels long if all of it were resized first.
    assert square(Image.new("L", (50_000, 1)), 100).size == (100, 100)


def test_large_photographs_may_be_read_smaller(tmp_path):
    photo = Image.effect_noise((512, 1024), 40).convert("RGB")
    path = saved(tmp_path, photo, "x.jpg")
    assert read_picture(path).size == (512, 1024)
    assert read_picture(path, at_least=100).size == (128, 256)


# A DDS file's header of 124 bytes, whose flags of the pixels are none that there are.
DDS = b"DDS " + struct.pack("<7I44x2I44x", 124, 0x1007, 4, 4, 0, 0, 0, 32, 1 << 22)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (DDS, "Unknown pixel format flags"),
        (b"not a picture at all", "is in no format that Pillow knows"),
        (None, "is missing or no file"),
    ],
)
def test_files_that_are_no_pictures_are_refused(tmp_path, content, reason):
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"x.png cannot be read as a picture: {reason}"):
        read_picture(path)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.gif", "x.bmp", "x.webp", "x.tif"])
def test_files_that_are_cut_off_are_refused(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3)).astype(np.uint8)
    path = saved(tmp_path, noise, name)
    whole = path.read_bytes()
    for share in (0.05, 0.5, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=f"{name} cannot be read as a picture: "):
            read_picture(path)


@pytest.mark.parametrize("limit", [200, 120])  # Pillow itself refuses twice the limit, and warns
def test_a_picture_of_too_many_pixels_is_refused(tmp_path, monkeypatch, limit):
    path = saved(tmp_path, Image.new("1", (20, 20)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    sentence = f"cannot be read as a picture: has more than {limit} pix"
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # pytest has made errors of all of them
        with pytest.raises(ValueError, match=sentence):
            read_picture(path)


def test_floating_point_and_large_whole_numbers_are_refused(tmp_path):
    path = saved(tmp_path, Image.new("F", (2, 2)), "f.tif")
    with pytest.raises(ValueError, match="holds floating-point pixels"):
        read_picture(path)
    path = saved(tmp_path, Image.new("I", (2, 2), 70_000), "i.tif")
    with pytest.raises(ValueError, match="holds whole numbers from 70000 to 70000, expected 0 to"):
        read_picture(path)


def test_without_pillow_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="reading pictures needs the package Pillow"):
        pictures.read_picture(tmp_path)
