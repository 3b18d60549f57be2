"""Pictures of a take: poses side by side, an animation, a video; and a rollout's thumbnail."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from amp_core.errors import InputRefused
from amp_core.render.stage import Camera, Stage, place_camera
from amp_core.render.takes import Take

__all__ = ["DEFAULT_SIZES", "ENDINGS", "THUMBNAIL_SIZE", "Style", "draw_thumbnail", "write_picture"]

ENDINGS = {".png": "a filmstrip", ".webp": "an animation", ".mp4": "a video"}
"""What a file of this ending is."""
DEFAULT_SIZES = {".png": (256, 320), ".webp": (320, 400), ".mp4": (640, 640)}
"""(width, height) pixels of a pose of a filmstrip, or of a frame."""
MAX_SIDE = 4096
DEFAULT_FPS = {".webp": 12.5, ".mp4": 25.0}
THUMBNAIL_SIZE = (80, 96)
"""Pixels of each of the six poses."""
_THUMBNAIL_POSES = 6
_THUMBNAIL_QUALITY = 82
_MAX_ANIMATION_BYTES = 512 << 20
_MAX_STRIP = 16_000
"""Pixels of a filmstrip's width."""

_INK, _PALE, _FALL, _GHOST = (31, 35, 41), (96, 104, 117), (200, 38, 38), (64, 132, 255)
_PAPER = (246, 247, 249)
_GAP = 4
_SMOOTH_SEC = 0.4
"""s; an animation's camera follows the mean place of the root in this time."""

Report = Callable[[float], None]


@dataclass(frozen=True)
class Style:
    """How a take is drawn.

    Args:
      size: (width, height) of a pose or frame.
      count: poses of a filmstrip.
      fps: frames a second of an animation.
      has_ghost: whether the clip is drawn beside the rollout.
      azimuth: deg, where the camera stands: 0 before the robot as it looks in the first pose, 90 at its left.
      elevation: deg above the horizon.
    """

    size: tuple[int, int]
    count: int = 8
    fps: float = 25.0
    has_ghost: bool = True
    azimuth: float = 40.0
    elevation: float = 12.0


def write_picture(take: Take, target: Path, ending: str, style: Style, platform: Callable[[], str], report: Report) -> None:
    """Draw a take into a file.

    Args:
      ending: `.png`, `.webp` or `.mp4`.
      platform: the GL to draw with; it is asked when everything else is known.
      report: is called with the share that is drawn.

    Raises:
      NoGraphics: there is no GL.
    """
    rows = choose_rows(take, ending, style)
    if ending == ".png" and len(rows) * (style.size[0] + _GAP) > _MAX_STRIP:
        raise InputRefused(
            f"{len(rows)} poses of {style.size[0]} pixels are too wide a picture",
            key="count",
            expected=f"at most {_MAX_STRIP} pixels",
            remedy="Give fewer poses, or a smaller --size",
        )
    if ending == ".webp" and len(rows) * style.size[0] * style.size[1] * 3 > _MAX_ANIMATION_BYTES:
        # Its encoder wants all of them at once.
        raise InputRefused(
            f"{len(rows)} frames of {style.size[0]}x{style.size[1]} pixels are too many for an animation",
            key="frames",
            expected=f"at most {_MAX_ANIMATION_BYTES // (style.size[0] * style.size[1] * 3)} of this size",
            remedy="Write an .mp4, which may last, or give --frames A:B, or a smaller --size or --rate",
        )
    frames = iterate_frames(take, rows, style, platform, smooth=ending != ".png", report=report)
    if ending == ".png":
        _draw_strip(take, rows, list(frames), style).save(target, "PNG")
    elif ending == ".webp":
        images = (_label_frame(take, row, frame) for row, frame in zip(rows, frames, strict=True))
        first = next(images)
        first.save(target, "WEBP", save_all=True, append_images=images, duration=round(1000 / style.fps), loop=0, quality=80)
    else:
        _write_video(target, (_label_frame(take, row, frame) for row, frame in zip(rows, frames, strict=True)), style)


def draw_thumbnail(take: Take, platform: Callable[[], str]) -> bytes:
    """A WebP of six poses side by side."""
    style = Style(THUMBNAIL_SIZE, count=_THUMBNAIL_POSES)
    rows = choose_rows(take, ".png", style)
    frames = iterate_frames(take, rows, style, platform, smooth=False, report=lambda share: None)
    strip = np.full((style.size[1], _THUMBNAIL_POSES * style.size[0], 3), _PAPER, np.uint8)
    for index, frame in enumerate(frames):
        strip[:, index * style.size[0] : (index + 1) * style.size[0]] = frame
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, "WEBP", quality=_THUMBNAIL_QUALITY, method=4)
    return buffer.getvalue()


def choose_rows(take: Take, ending: str, style: Style) -> list[int]:
    """The poses that are drawn: so many along the take, or those of so many a second."""
    last = len(take.qpos) - 1
    if ending == ".png":
        return sorted({round(row) for row in np.linspace(0, last, style.count).tolist()})
    count = int(last / take.fps * style.fps + 1e-9) + 1
    return [round(index * take.fps / style.fps) for index in range(count)]


def iterate_frames(
    take: Take, rows: list[int], style: Style, platform: Callable[[], str], *, smooth: bool, report: Report
) -> Iterator[npt.NDArray[np.uint8]]:
    """The picture of each of some poses."""
    poses = [take.qpos] if take.ghost_qpos is None or not style.has_ghost else [take.qpos, take.ghost_qpos]
    drawn_poses = [qpos[rows] for qpos in poses]
    camera = _place_camera(take, drawn_poses, style)
    first = take.robot.root_qpos_adr
    centres = take.qpos[:, first : first + 2]
    if smooth:
        centres = _smooth(centres, round(_SMOOTH_SEC * take.fps))
    with Stage(take.robot, camera, style.size, platform()) as stage:
        for index, row in enumerate(rows):
            ghost = drawn_poses[1][index] if len(drawn_poses) > 1 else None
            yield stage.draw(take.qpos[row], ghost, centres[row])
            report((index + 1) / len(rows))


def _place_camera(take: Take, poses: list[npt.NDArray[np.float64]], style: Style) -> Camera:
    return place_camera(take.robot, poses, style.size, take.heading + 180 + style.azimuth, style.elevation)


def _smooth(places: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    """The mean of each place and its neighbours, `width` on either side."""
    canvas = np.pad(places, ((width, width), (0, 0)), mode="edge")
    total = np.cumsum(np.concatenate([np.zeros((1, 2)), canvas]), axis=0)
    return np.asarray((total[2 * width + 1 :] - total[: -2 * width - 1]) / (2 * width + 1))


# Labels


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _time_text(take: Take, row: int) -> str:
    return f"{take.seconds(row):.2f} s"


def _draw_strip(take: Take, rows: list[int], frames: list[npt.NDArray[np.uint8]], style: Style) -> Image.Image:
    """Poses side by side under a line that says whose they are, each with its time."""
    width, height = style.size
    text_size = max(11, min(18, round(height / 20)))
    font, small = _font(text_size), _font(max(11, text_size - 2))
    band = 2 * text_size
    strip = Image.new("RGB", (len(frames) * (width + _GAP) - _GAP, band + height), _PAPER)
    draw = ImageDraw.Draw(strip)
    _draw_title(draw, take, style, strip.width, band, font, small)
    for index, (row, frame) in enumerate(zip(rows, frames, strict=True)):
        left = index * (width + _GAP)
        strip.paste(Image.fromarray(frame), (left, band))
        fallen = take.has_fallen(row)
        text = _time_text(take, row) + (", fallen" if fallen else "")
        draw.text((left + text_size // 2, band + height - text_size // 2), text, _FALL if fallen else _PALE, small, anchor="lb")
    return strip


def _draw_title(draw: ImageDraw.ImageDraw, take: Take, style: Style, width: int, band: int, font: Any, small: Any) -> None:
    """The clip's name, what is known of it, and what the ghost is, as far as there is room."""
    right = width - band // 4
    if take.ghost_qpos is not None and style.has_ghost:
        label = "clip"
        draw.text((right, band / 2), label, _GHOST, small, anchor="rm")
        right -= round(draw.textlength(label, small)) + band // 2
    x = band // 4
    fall = [] if take.fell_at is None else [f"falls at {take.fell_at / take.fps:.2f} s"]
    for index, text in enumerate([take.name, take.robot.name, *take.facts, *fall]):
        ink = _INK if index == 0 else _FALL if text in fall or text == "Rejected" else _PALE
        text = _shorten(draw, text, font if index == 0 else small, right - x)
        if not text:
            return
        draw.text((x, band / 2), text, ink, font if index == 0 else small, anchor="lm")
        x += round(draw.textlength(text, font if index == 0 else small)) + band // 2


def _shorten(draw: ImageDraw.ImageDraw, text: str, font: Any, room: float) -> str:
    """A text that is no longer than there is room."""
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(text + "…", font) > room:
        text = text[:-1]
    return text + "…" if len(text) > 3 else ""


def _label_frame(take: Take, row: int, frame: npt.NDArray[np.uint8]) -> Image.Image:
    """A frame of an animation with its time, the clip's name and, once the robot has fallen, that."""
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    size = max(11, min(22, image.height // 24))
    font = _font(size)
    draw.text((size // 2, size // 2), _shorten(draw, take.name, font, image.width - size), _INK, font, anchor="lt")
    fallen = take.has_fallen(row)
    left = _time_text(take, row) + (", fallen" if fallen else "")
    draw.text((size // 2, image.height - size // 2), left, _FALL if fallen else _PALE, font, anchor="lb")
    facts = _shorten(draw, ", ".join(take.facts), font, image.width - draw.textlength(left, font) - 2 * size)
    draw.text((image.width - size // 2, image.height - size // 2), facts, _PALE, font, anchor="rb")
    return image


def _write_video(target: Path, images: Iterator[Image.Image], style: Style) -> None:
    """H.264 as every player and browser has it."""
    import av  # noqa: PLC0415 - Only a video needs it, and it is slow to import.

    with av.open(str(target), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(style.fps).limit_denominator(1000))
        stream.width, stream.height = (side // 2 * 2 for side in style.size)
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast"}
        for image in images:
            pixels = np.asarray(image)[: stream.height, : stream.width]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
