"""Images of every mode and depth read as what they show; anything else is one line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin

from metalearn import DataError
from metalearn.datamodules.sources.folders import read_support
from metalearn.datamodules.sources.images import ImageSpec, read_image

GREY = ImageSpec(channels=1, size=20)
ORIENTATION = 0x0112


def saved(image: Image.Image, kind: str, **more: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **more)
    file.seek(0)
    return file


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_reads_as_the_same_picture(mode: str, channels: int) -> None:
    """A dark square on white, in whatever mode."""
    plain = Image.new("L", (20, 20), 255)
    plain.paste(0, (5, 5, 15, 15))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(plain).astype(np.uint16) * 257)
    elif mode in ("LA", "RGBA"):
        image = Image.new(mode, (20, 20))
        image.paste({"LA": (0, 255), "RGBA": (0, 0, 0, 255)}[mode], (5, 5, 15, 15))  # transparent but for the square
    else:
        image = plain.convert(mode)
    file = io.BytesIO()
    image.save(file, "tiff" if mode in ("CMYK", "I;16") else "png")
    file.seek(0)
    found = read_image(file, ImageSpec(channels=channels, size=20))
    assert found.shape == (channels, 20, 20)
    assert (found[:, 10, 10] <= 1).all()
    assert (found[:, 1, 1] >= 254).all()


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    file = io.BytesIO()
    Image.new("L", (20, 20)).save(file, "png")
    file.seek(0)
    with pytest.raises(DataError, match="too many pixels"):
        read_image(file, ImageSpec())


def test_a_truncated_jpeg_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"cut.jpg cannot be read"):
        read_image(path, ImageSpec())


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
@pytest.mark.parametrize("top", [200, 255, 256, 65535])
def test_16_bits_are_16_bits_however_dark(kind: str, top: int) -> None:
    """A ramp: decided by its mode, so that a dark picture is not brightened 257 times."""
    ramp = np.linspace(0, top, 400).round().astype(np.uint16).reshape(20, 20)
    ppm = io.BytesIO(b"P5 20 20 65535\n" + ramp.astype(">u2").tobytes())  # Pillow writes it from 11.0 on
    found = read_image(ppm if kind == "ppm" else saved(Image.fromarray(ramp), kind), GREY)
    assert (np.abs(found[0] - ramp / 257.0) <= 0.5).all()


@pytest.mark.parametrize("value", [-1.0, 255.5, np.nan])
def test_values_beyond_the_depth_are_refused(value: float) -> None:
    grey = np.full((20, 20), 128, np.float32)
    assert (read_image(saved(Image.fromarray(grey), "tiff"), GREY) == 128).all()
    grey[3, 3] = value
    with pytest.raises(DataError, match=r"image it has pixels from .*in mode F they must lie in 0\.\.255; save it"):
        read_image(saved(Image.fromarray(grey), "tiff"), GREY, "it")
    with pytest.raises(DataError, match=r"to 70000, but in mode I they must lie in 0\.\.65535"):
        read_image(saved(Image.fromarray(np.full((20, 20), 70_000, np.int32)), "tiff"), GREY)


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp"])
@pytest.mark.parametrize(("orientation", "turn"), [(1, None), (3, Image.Transpose.ROTATE_180),
                         (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270)])  # fmt: skip
def test_a_picture_is_turned_upright(kind: str, orientation: int, turn: Image.Transpose | None, tmp_path: Path) -> None:
    """As a camera stores it: turned, with a note of how."""
    upright = Image.new("L", (40, 20), 255)
    upright.paste(0, (2, 2, 12, 12))
    stored = upright if turn is None else upright.transpose(turn)
    note = Image.Exif()
    note[ORIENTATION] = orientation
    more = {"exif": note, **({"lossless": True} if kind == "webp" else {})}
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"0.{kind}").write_bytes(saved(stored, kind, **more).getvalue())
    images, _, _ = read_support(tmp_path, GREY)
    assert np.abs(images[0].astype(int) - read_image(saved(upright, "png"), GREY)).max() < 12


def test_no_other_program_sees_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript under an image's name is refused, not handed to Ghostscript."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was asked"))
    path = tmp_path / "figure.png"
    path.write_bytes(saved(Image.new("L", (20, 20)), "eps").getvalue())
    with pytest.raises(DataError, match="figure.png cannot be read .* no PNG, JPEG, BMP, GIF, TIFF, WEBP, PPM"):
        read_image(path, GREY)


def test_what_pillow_does_not_support_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise NotImplementedError("some rare kind")

    file = saved(Image.new("L", (20, 20)), "png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", refuse)
    with pytest.raises(DataError, match="image it cannot be read .some rare kind.") as caught:
        read_image(file, GREY, "it")
    assert "\n" not in str(caught.value)
