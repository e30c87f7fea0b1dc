"""Every kind of picture arrives as right RGB, or is refused by name; nothing is substituted."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_mole.data.images import load_image
from llava_mole.errors import DataError


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corner(content: bytes | Path) -> tuple[int, int, int]:
    image = load_image(content)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def noise(size: int = 64) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(values)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


# --- accepted ------------------------------------------------------------------------------------


def test_a_path_bytes_an_open_file_and_a_pil_image_give_the_same(tmp_path):
    path = tmp_path / "a.png"
    noise().save(path)
    with path.open("rb") as file:
        sources = [path, str(path), path.read_bytes(), file, Image.open(path)]
        pictures = [np.asarray(load_image(source)) for source in sources]
    assert all(np.array_equal(picture, np.asarray(noise())) for picture in pictures)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind):
    samples = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(2, 128)
    image = load_image(saved(Image.fromarray(samples), kind))
    assert np.array_equal(np.asarray(image)[:, :, 0].ravel(), np.arange(256))


def test_floats_in_the_unit_interval_are_scaled_and_others_refused():
    unit = Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32))
    assert load_image(saved(unit, "TIFF")).getpixel((1, 0)) == (255, 255, 255)
    wide = Image.fromarray(np.array([[0.0, 3000.0]], dtype=np.float32))
    with pytest.raises(DataError, match="3000"):
        load_image(saved(wide, "TIFF"))


def test_cmyk_is_converted():
    red, green, blue = corner(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert red > 230
    assert green < 30
    assert blue < 30


def test_transparency_shows_white_whatever_lies_under_it():
    hidden_red = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert corner(saved(hidden_red, "PNG")) == (255, 255, 255)
    half_black = Image.new("LA", (2, 2), (0, 128))
    assert corner(saved(half_black, "PNG")) == (127, 127, 127)


def test_a_palette_with_transparency_is_composited_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    picture = load_image(saved(image, "PNG", transparency=0))
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((1, 0)) == (0, 0, 255)


def test_a_transparent_grey_level_of_sixteen_bits_shows_white():
    samples = Image.fromarray(np.array([[1000, 30000]], dtype=np.uint16))
    picture = load_image(saved(samples, "PNG", transparency=1000))
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((1, 0)) == (117, 117, 117)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    red, green, blue = corner(content)
    assert red > 200 > 50 > max(green, blue)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (4, 2), "red")
    image.putpixel((0, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[274] = 6  # turn 90 degrees clockwise to see it upright
    picture = load_image(saved(image, "PNG", exif=exif))
    assert picture.size == (2, 4)
    assert picture.getpixel((1, 0)) == (0, 0, 255)


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_plain_modes_become_rgb(mode):
    content = saved(Image.new("RGB", (8, 8), "white").convert(mode), "TIFF")
    assert min(corner(content)) > 250


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path, kind, part):
    content = saved(noise(), kind)
    path = tmp_path / "cut.img"
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(DataError, match=r"cut\.img"):
        load_image(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?>\n<svg/>", "SVG"),
        (b"\n<!DOCTYPE html><html>404</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"hello, I am a text", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "not a picture|broken"),
        (png_header(8, 8), "truncated|broken"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "odd.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        load_image(path)
    assert "odd.png" in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png.*no such file"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(DataError, match="cannot be read"):
        load_image(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [40_000, 9_500])
def test_a_huge_picture_is_refused_before_its_pixels_are_touched(tmp_path, side):
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(side, side))
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(DataError, match=r"huge\.png.*too many pixels|huge\.png.*pixels, at most"):
        load_image(path)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_the_limit_can_be_set_and_holds_for_pil_images_too():
    assert load_image(noise(64), max_pixels=4096).size == (64, 64)
    with pytest.raises(DataError, match="4,096 pixels, at most 4,095"):
        load_image(noise(64), max_pixels=4095)


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (201, 1)])
def test_a_picture_far_too_long_for_its_width_is_refused(size):
    content = saved(Image.new("L", size), "PNG")
    for source in (content, Image.open(io.BytesIO(content))):
        with pytest.raises(DataError, match=r"pixels, one side more than 200 times the other"):
            load_image(source)


def test_a_picture_at_the_limit_of_proportions_is_read():
    assert load_image(saved(Image.new("L", (200, 1)), "PNG")).size == (200, 1)


def test_a_wrong_type_is_refused():
    with pytest.raises(DataError, match="found int"):
        load_image(7)
    with pytest.raises(DataError, match="open it with mode 'rb'"):
        load_image(io.StringIO("x"))
