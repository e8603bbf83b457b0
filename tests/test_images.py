"""Pictures in every form users have become the same upright RGB, and whatever is no picture is refused."""

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, features

from mmedit.errors import ImageError
from mmedit.models.images import image_digest, load_image

law = settings(deadline=None, max_examples=50)  # no deadline: the machine may be busy

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
GREY = PIXELS[..., 0]
ALPHA = np.where(PIXELS[..., 1] > 127, 255, 0).astype(np.uint8)
RGB = Image.fromarray(PIXELS)
WEBP = pytest.param("WEBP", marks=pytest.mark.skipif(not features.check("webp"), reason="Pillow without WebP"))


def rgb(source: Any) -> np.ndarray:
    """The pixels that are read, as signed numbers."""
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def grey(levels: np.ndarray) -> np.ndarray:
    return levels[..., None].repeat(3, -1).astype(int)


def on_white(pixels: np.ndarray) -> np.ndarray:
    return np.where(ALPHA[..., None] == 255, pixels, 255).astype(int)


def mode_i() -> Image.Image:
    return Image.fromarray((GREY.astype(np.uint16) * 257).astype(np.int32))


def palette(transparent: bool) -> Image.Image:
    image = Image.fromarray(GREY // 64).convert("L")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    if transparent:
        image.info["transparency"] = 2
    return image


COLOURS_OF_PALETTE = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)])
WHITE_FOR_BLUE = np.array([(255, 0, 0), (0, 255, 0), (255, 255, 255), (9, 9, 9)])
CMYK = np.dstack([PIXELS, GREY // 4])
# mode: the picture, the RGB it shows, and the formats that hold it without loss
MODES: dict[str, tuple[Image.Image, np.ndarray, list[str]]] = {
    "RGB": (RGB, PIXELS.astype(int), ["PNG", "BMP", "TIFF", "WEBP"]),
    "RGBA": (Image.fromarray(np.dstack([PIXELS, ALPHA])), on_white(PIXELS), ["PNG", "TIFF", "WEBP"]),
    "L": (Image.fromarray(GREY), grey(GREY), ["PNG", "BMP", "TIFF"]),
    "LA": (Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), on_white(grey(GREY)), ["PNG"]),
    "P": (palette(False), COLOURS_OF_PALETTE[GREY // 64], ["PNG", "GIF", "TIFF"]),
    "P transparent": (palette(True), WHITE_FOR_BLUE[GREY // 64], ["PNG", "GIF"]),
    "1": (Image.fromarray(GREY > 99), grey(np.where(GREY > 99, 255, 0)), ["PNG", "TIFF"]),
    "CMYK": (
        Image.merge("CMYK", [Image.fromarray(CMYK[..., i]) for i in range(4)]),
        (255 - PIXELS) * (255 - CMYK[..., 3:].astype(int)) / 255,
        ["TIFF"],
    ),
    "I;16": (Image.fromarray(GREY.astype(np.uint16) * 257), grey(GREY), ["PNG", "TIFF"]),
    "I": (mode_i(), grey(GREY), ["TIFF"]),
    "F": (Image.fromarray(GREY.astype(np.float32) / 255), grey(GREY), ["TIFF"]),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_shows_what_it_means(mode: str, tmp_path: Path) -> None:
    """As a PIL picture and from each lossless format; 1 off is rounding in the CMYK formula."""
    image, shown, formats = MODES[mode]
    assert image.mode == mode.split()[0]
    before = image.tobytes()
    assert abs(rgb(image) - shown).max() <= (mode == "CMYK")
    assert (image.mode, image.tobytes()) == (mode.split()[0], before), "the caller's picture was changed"
    for name in (name for name in formats if name != "WEBP" or features.check("webp")):
        image.save(path := tmp_path / f"picture.{name.lower()}", name, **({"lossless": True} if name == "WEBP" else {}))
        assert abs(rgb(path) - shown).max() <= (mode == "CMYK"), name


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_of_every_mode_keeps_its_colour(mode: str, tmp_path: Path) -> None:
    colour = (200, 80, 40) if mode == "RGB" else (120, 120, 120)
    Image.new("RGB", (32, 32), colour).convert(mode).save(path := tmp_path / "picture.jpg")
    assert abs(rgb(path) - colour).max() <= 4


def test_half_transparent_is_mixed_with_white() -> None:
    assert rgb(Image.new("RGBA", (1, 1), (0, 100, 255, 128))).tolist() == [[pytest.approx([127, 177, 255], abs=1)]]


def test_a_transparent_colour_without_an_alpha_channel_is_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (4, 5, 6))
    image.save(path := tmp_path / "picture.png", transparency=(1, 2, 3))
    assert rgb(path).tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(levels).save(path := tmp_path / "grey.png")
    assert abs(rgb(path) - grey(levels / 257)).max() < 1
    assert rgb(path)[128, 0] == pytest.approx(128, abs=1)


STORED_AS = {  # EXIF orientation: what was done to the upright picture before it was stored
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("name", ["PNG", "JPEG", WEBP])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_a_turned_picture_comes_out_upright(tmp_path: Path, orientation: int, name: str) -> None:
    """A tall picture, dark at its top left, stored in each of the eight ways."""
    upright = np.full((48, 16, 3), 240, np.uint8)
    upright[:16, :8] = 10
    turn, exif = STORED_AS[orientation], Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(upright) if turn is None else Image.fromarray(upright).transpose(turn)
    stored.save(path := tmp_path / "picture", name, exif=exif, **({"lossless": True} if name == "WEBP" else {}))
    assert (stored.width > stored.height) == (orientation > 4)
    assert load_image(path).size == (16, 48)
    assert abs(rgb(path) - upright).max() <= (20 if name == "JPEG" else 0)
    with Image.open(path) as opened:
        assert (rgb(opened) == rgb(path)).all()


SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uint8": lambda levels: levels,
    "uint16": lambda levels: levels.astype(np.uint16) * 257,
    "big-endian uint16": lambda levels: (levels.astype(np.uint16) * 257).astype(">u2"),
    "float32": lambda levels: levels.astype(np.float32) / 255,
    "float64": lambda levels: levels / 255,
    "reversed view": lambda levels: np.ascontiguousarray(levels[::-1])[::-1],
}
SHAPES = {
    "[h, w]": (GREY, grey(GREY)),
    "[h, w, 1]": (GREY[..., None], grey(GREY)),
    "[h, w, 3]": (PIXELS, PIXELS.astype(int)),
    "[h, w, 4]": (np.dstack([PIXELS, ALPHA]), on_white(PIXELS)),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_array_of_every_scale_and_shape_shows_the_same(scale: str, shape: str) -> None:
    levels, shown = SHAPES[shape]
    assert (rgb(SCALES[scale](levels)) == shown).all()


def test_a_float_between_two_levels_becomes_the_nearer() -> None:
    levels = np.linspace(0, 1, 999).reshape(27, 37)
    assert abs(rgb(levels) - levels[..., None] * 255).max() < 0.501


def test_the_result_is_the_caller_s_own_to_change() -> None:
    for source in (RGB, PIXELS):
        before = np.array(source)
        load_image(source).paste((1, 2, 3), (0, 0, 16, 24))
        assert (np.asarray(source) == before).all()


def test_the_digest_is_the_same_however_the_picture_is_given(tmp_path: Path) -> None:
    RGB.save(png := tmp_path / "picture.png")
    RGB.save(bmp := tmp_path / "picture.bmp")
    sources = [RGB, RGB.convert("RGBA"), PIXELS, PIXELS / 255, png, str(png), bmp]
    assert len({image_digest(source) for source in sources}) == 1


@law
@given(arrays(np.uint8, shape := array_shapes(min_dims=2, max_dims=2, max_side=3)), arrays(np.uint8, shape))
def test_digests_tell_pictures_apart_and_no_more(a: np.ndarray, b: np.ndarray) -> None:
    assert (image_digest(a) == image_digest(b)) == np.array_equal(a, b)
    if a.size > 1:
        assert image_digest(a) != image_digest(a.reshape(-1, 1) if a.shape[1] > 1 else a.reshape(1, -1))


def encoded(name: str, **options: Any) -> bytes:
    RGB.save(file := io.BytesIO(), name, **options)
    return file.getvalue()


FILES = {
    "text.png": (b"this is text", "no image reader recognises"),
    "empty.png": (b"", "no image reader recognises"),
    "cut.png": (encoded("PNG")[:200], "cannot read this picture"),
    "cut.jpg": (encoded("JPEG")[:-60], "cannot read this picture"),
    "header.png": (encoded("PNG")[:20], "cannot read this picture|no image reader"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_whole_picture_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, told = FILES[name]
    (path := tmp_path / name).write_bytes(content)
    for source in (path, str(path)):
        with pytest.raises(ImageError, match=told) as caught:
            load_image(source)
        assert caught.value.where == path and caught.value.got
        assert caught.value.do or caught.value.expected


@pytest.mark.parametrize(
    ("name", "told"),
    [("missing.png", "nothing there"), ("", "a folder"), ("file/x.png", "nothing there"), ("n" * 300, "too long")],
)
def test_a_path_that_leads_to_no_file_is_refused_by_name(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match=rf"^(no such|cannot read this) picture\n(.|\n)*{told}") as caught:
        load_image(tmp_path / name)
    assert caught.value.where == tmp_path / name and caught.value.do


@pytest.mark.parametrize("name", ["PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", WEBP])
def test_a_file_damaged_anywhere_is_read_or_refused_by_name(tmp_path: Path, name: str) -> None:
    """Pillow's readers raise many types on broken data; a user sees one."""
    whole, rng, path, refused = encoded(name), random.Random(name), tmp_path / "picture", 0
    for trial in range(120):
        damaged = bytearray(whole if trial % 2 else whole[: rng.randrange(len(whole))])
        for _ in range(trial % 2 * rng.randint(1, 4)):
            damaged[rng.randrange(min(len(damaged), 200))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert load_image(path).mode == "RGB"
        except ImageError as error:
            assert error.where == path
            refused += 1
    assert refused


def test_a_broken_picture_that_the_caller_opened_is_refused_too() -> None:
    with (
        pytest.raises(ImageError, match="cannot read this picture"),
        Image.open(io.BytesIO(FILES["cut.png"][0])) as cut,
    ):
        load_image(cut)


def test_a_decompression_bomb_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RGB.save(path := tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match="bomb") as caught:
        load_image(path)
    assert caught.value.where == path


def test_a_picture_out_of_range_is_refused_by_its_file_s_name(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 2, np.float32)).save(path := tmp_path / "bright.tiff")
    with pytest.raises(ImageError, match=r"^not a picture's values(.|\n)*float32 from 2\.0 to 2\.0") as caught:
        load_image(path)
    assert caught.value.where == path


@pytest.mark.parametrize(
    "array",
    [np.zeros(s, np.uint8) for s in [(), (4,), (4, 4, 2), (4, 4, 5), (3, 4, 6), (1, 4, 4, 3), (0, 4), (4, 0, 3)]],
    ids=lambda array: str(array.shape),
)
def test_an_array_of_another_shape_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"not a picture's shape(.|\n)*\[height, width\]") as caught:
        load_image(array)
    assert caught.value.got == array.shape


@pytest.mark.parametrize("size", [(0, 3), (3, 0)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I", "F"])
def test_an_empty_pil_picture_is_refused(mode: str, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"^this picture is empty(.|\n)*{size[0]}x{size[1]} pixels"):
        load_image(Image.new(mode, size))


@law
@given(st.sampled_from([1.001, -0.001, 255, np.nan, np.inf, -np.inf]), st.integers(0, 3))
def test_a_float_out_of_range_is_refused(value: float, place: int) -> None:
    for dtype in (np.float32, np.float64):
        array = np.full(4, 0.5, dtype)
        array[place] = value
        for source in (array.reshape(2, 2), Image.fromarray(array.reshape(2, 2).astype(np.float32))):
            with pytest.raises(ImageError, match=r"not a picture's values(.|\n)*float from 0 to 1") as caught:
                load_image(source)
            assert "float" in str(caught.value.got)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint32", "bool", "complex64", "U1"])
def test_an_array_whose_scale_is_unknown_is_refused(dtype: str) -> None:
    """A grey of 200 in int64 could be of 255 or of 65535, so it is not guessed at."""
    with pytest.raises(ImageError, match=r"not a picture's values(.|\n)*uint8, uint16") as caught:
        load_image(np.ones((2, 2), dtype))
    assert str(np.dtype(dtype)) in str(caught.value.got)


@pytest.mark.parametrize("source", [None, 7, b"cat.png", [RGB], {"path": "cat.png"}], ids=lambda s: type(s).__name__)
def test_anything_else_is_refused_by_type(source: Any) -> None:
    with pytest.raises(ImageError, match="a path, a PIL picture or a numpy array") as caught:
        load_image(source)
    assert caught.value.got == type(source).__name__
