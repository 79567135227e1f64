"""Draws the reference images of `examples/catalogue.jsonl`: flat pictures of what each title names.

    python examples/draw_references.py [FOLDER]

Everything is drawn here, from shapes; nothing is downloaded. Coordinates are in pixels of the finished 256 x 256
picture; it is drawn four times as large and reduced, so that edges are smooth.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

SIZE, SCALE = 256, 4
Point = tuple[float, float]
SCENES: dict[str, Callable[[Pen], None]] = {}


class Pen:
    """Filled shapes on one picture."""

    def __init__(self, background: str = "#ffffff") -> None:
        self.image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), background)
        self._draw = ImageDraw.Draw(self.image)

    def fill(self, top: str, bottom: str | None = None, bands: int = 1) -> None:
        """The background: one colour, or horizontal bands from one to another."""
        first, last = _rgb(top), _rgb(bottom or top)
        for band in range(bands):
            t = band / max(1, bands - 1)
            colour = tuple(round(a + (b - a) * t) for a, b in zip(first, last, strict=True))
            self._draw.rectangle([0, band * SIZE * SCALE // bands, SIZE * SCALE, SIZE * SCALE], fill=colour)

    def disc(self, x: float, y: float, rx: float, colour: str, ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        self._draw.ellipse(_scaled(x - rx, y - ry, x + rx, y + ry), fill=colour)

    def box(self, x: float, y: float, w: float, h: float, colour: str, radius: float = 0) -> None:
        self._draw.rounded_rectangle(_scaled(x, y, x + w, y + h), radius * SCALE, fill=colour)

    def shape(self, points: Sequence[Point], colour: str) -> None:
        self._draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=colour)

    def line(self, points: Sequence[Point], colour: str, width: float) -> None:
        """A line with round joints and ends."""
        self._draw.line([(x * SCALE, y * SCALE) for x, y in points], colour, round(width * SCALE), joint="curve")
        for x, y in (points[0], points[-1]):
            self.disc(x, y, width / 2, colour)

    def slice(self, x: float, y: float, r: float, start: float, end: float, colour: str) -> None:
        """A slice of a disc, degrees clockwise from three o'clock."""
        self._draw.pieslice(_scaled(x - r, y - r, x + r, y + r), start, end, fill=colour)

    def ring(self, x: float, y: float, r: float, colour: str, width: float, start: float = 0, end: float = 360) -> None:
        self._draw.arc(_scaled(x - r, y - r, x + r, y + r), start, end, fill=colour, width=round(width * SCALE))

    def stars(self, seed: int, count: int, colour: str, below: float = 256) -> None:
        rng = random.Random(seed)
        for _ in range(count):
            self.disc(rng.uniform(4, 252), rng.uniform(4, below), rng.choice((1.0, 1.4, 2.0)), colour)

    def hill(self, base: float, height: float, phase: float, colour: str, length: float = 180) -> None:
        top = [(x, base - height * math.sin((x + phase) / length * math.pi)) for x in range(0, 260, 4)]
        self.shape([*top, (260, 260), (0, 260)], colour)


def scene(draw: Callable[[Pen], None]) -> Callable[[Pen], None]:
    SCENES[draw.__name__.replace("_", "-")] = draw
    return draw


@scene
def lantern(pen: Pen) -> None:
    pen.fill("#10183a", "#2b2d5e", 8)
    pen.stars(1, 40, "#cfd6ff", 190)
    for r, colour in ((92, "#34346a"), (72, "#4a4275"), (54, "#76597a")):
        pen.disc(128, 142, r, colour)
    pen.hill(236, 14, 30, "#0c1029")
    pen.ring(128, 70, 22, "#d9a441", 6, 180, 360)
    pen.shape([(96, 92), (160, 92), (148, 72), (108, 72)], "#d9a441")
    pen.box(100, 92, 56, 96, "#fff0b3", 6)
    pen.disc(128, 146, 17, "#ffc94a", 30)
    pen.disc(128, 154, 9, "#ff8a3c", 19)
    for x in (100, 125, 150):
        pen.box(x, 92, 6, 96, "#8a5a22")
    pen.box(90, 186, 76, 16, "#d9a441", 5)


@scene
def owl(pen: Pen) -> None:
    pen.fill("#1d3557")
    pen.stars(2, 30, "#a8c4e0")
    pen.disc(128, 112, 92, "#f4e9c9")
    pen.disc(94, 70, 12, "#e6d8ae")
    pen.disc(178, 132, 16, "#e6d8ae")
    pen.shape([(84, 96), (92, 58), (116, 84)], "#5b3f2f")
    pen.shape([(172, 96), (164, 58), (140, 84)], "#5b3f2f")
    pen.disc(128, 148, 50, "#6f4e37", 70)
    pen.disc(128, 172, 32, "#d8b48a", 44)
    for x, y in ((112, 162), (128, 170), (144, 162), (120, 186), (136, 186)):
        pen.slice(x, y, 9, 0, 180, "#a87b51")
    for x in (106, 150):
        pen.disc(x, 112, 23, "#fff6e0")
        pen.disc(x, 112, 11, "#22223b")
        pen.disc(x + 4, 108, 4, "#ffffff")
    pen.shape([(119, 122), (137, 122), (128, 142)], "#f2a541")
    pen.box(24, 212, 208, 14, "#3b2a1e", 7)
    for x in (108, 122, 136, 150):
        pen.disc(x, 213, 6, "#f2a541", 9)


@scene
def umbrella(pen: Pen) -> None:
    pen.fill("#c9d6df")
    rng = random.Random(3)
    for _ in range(46):
        x, y = rng.uniform(0, 256), rng.uniform(0, 230)
        pen.line([(x, y), (x - 5, y + 16)], "#9db4c6", 2.4)
    pen.box(0, 224, 256, 32, "#8fa6b8")
    pen.line([(128, 40), (128, 204)], "#5a3d2b", 7)
    pen.ring(112, 204, 19, "#5a3d2b", 7, 0, 180)
    pen.slice(128, 140, 96, 180, 360, "#2f9e62")
    pen.shape([(128, 44), (84, 140), (172, 140)], "#3fbf7a")
    pen.shape([(128, 44), (32, 140), (58, 140)], "#258652")
    pen.shape([(128, 44), (224, 140), (198, 140)], "#258652")
    for x in (50, 102, 154, 206):
        pen.disc(x, 141, 26, "#c9d6df", 13)


@scene
def key(pen: Pen) -> None:
    pen.fill("#5e2b3c")
    pen.disc(128, 128, 104, "#743a4c")
    pen.disc(128, 76, 42, "#e0b04c")
    for angle in (90, 210, 330):
        x, y = 128 + 24 * math.cos(math.radians(angle)), 74 - 24 * math.sin(math.radians(angle))
        pen.disc(x, y, 24, "#e0b04c")
        pen.disc(x, y, 13, "#743a4c")
    pen.disc(128, 76, 9, "#f6d98b")
    pen.box(119, 112, 18, 104, "#e0b04c", 6)
    pen.box(119, 112, 6, 104, "#f6d98b", 3)
    pen.box(108, 116, 40, 9, "#c48f2d", 4)
    pen.box(136, 176, 28, 12, "#e0b04c", 2)
    pen.box(136, 198, 36, 14, "#e0b04c", 2)


@scene
def sailboat(pen: Pen) -> None:
    pen.fill("#ffd6a5", "#ff9f80", 6)
    pen.disc(180, 128, 40, "#fff1c9")
    pen.box(0, 160, 256, 96, "#3d7ea6")
    for y, shift in ((172, 0), (196, 40), (224, 12)):
        for x in range(-20 + shift, 260, 74):
            pen.box(x, y, 40, 4, "#6fa8c9", 2)
    pen.box(120, 48, 6, 130, "#5d3a1a")
    pen.shape([(130, 52), (130, 160), (204, 160)], "#ffffff")
    pen.shape([(116, 70), (116, 160), (62, 160)], "#e4572e")
    pen.shape([(56, 172), (208, 172), (184, 206), (82, 206)], "#7f4f24")
    pen.box(56, 170, 152, 9, "#a47148", 3)
    pen.box(60, 206, 150, 6, "#2f6690", 3)


@scene
def lighthouse(pen: Pen) -> None:
    pen.fill("#23395b", "#5d7ea8", 7)
    pen.stars(4, 24, "#dce9f7", 120)
    pen.shape([(140, 70), (262, 20), (262, 96)], "#fbe8a6")
    pen.shape([(116, 70), (-6, 36), (-6, 100)], "#c3c7b4")
    pen.shape([(104, 94), (152, 94), (168, 216), (88, 216)], "#f7f3ea")
    for top, bottom in ((116, 140), (166, 190)):
        half = [24 + 16 * (y - 94) / 122 for y in (top, bottom)]
        points = [(128 - half[0], top), (128 + half[0], top), (128 + half[1], bottom), (128 - half[1], bottom)]
        pen.shape(points, "#d1495b")
    pen.box(96, 86, 64, 10, "#2d3142", 2)
    pen.box(112, 56, 32, 32, "#ffe066", 3)
    pen.shape([(104, 58), (152, 58), (128, 34)], "#d1495b")
    pen.box(120, 196, 16, 20, "#2d3142", 6)
    pen.shape([(30, 256), (70, 208), (186, 208), (236, 256)], "#4a4e69")
    pen.shape([(104, 256), (136, 208), (186, 208), (236, 256)], "#3a3d55")


@scene
def balloon(pen: Pen) -> None:
    pen.fill("#9bd5f0")
    for x, y in ((44, 60), (206, 96), (58, 150)):
        pen.disc(x, y, 24, "#e8f7ff", 12)
        pen.disc(x + 20, y + 4, 20, "#e8f7ff", 9)
    pen.disc(136, 94, 62, "#d62839")
    pen.shape([(78, 116), (194, 116), (152, 168), (120, 168)], "#d62839")
    pen.disc(136, 94, 36, "#f5cb5c", 62)
    pen.shape([(102, 116), (170, 116), (147, 168), (125, 168)], "#f5cb5c")
    pen.disc(136, 94, 13, "#d62839", 62)
    pen.shape([(124, 116), (148, 116), (140, 168), (132, 168)], "#d62839")
    pen.line([(122, 168), (126, 188)], "#6b4226", 2.4)
    pen.line([(150, 168), (146, 188)], "#6b4226", 2.4)
    pen.box(121, 186, 30, 22, "#9c6644", 5)
    pen.hill(238, 22, 20, "#74b566")
    pen.hill(252, 18, 130, "#4c9653", 130)


@scene
def train(pen: Pen) -> None:
    pen.fill("#161a3a")
    pen.stars(5, 36, "#aeb6e8", 120)
    pen.disc(206, 46, 22, "#f2eecb")
    pen.disc(214, 40, 20, "#161a3a")
    pen.hill(170, 40, 60, "#232a5c", 150)
    pen.box(0, 206, 256, 50, "#0d1026")
    for x in (84, 62, 36):
        pen.disc(x, 84 - (84 - x) * 0.5, 20 - (84 - x) * 0.1, "#4d5691")
    pen.box(72, 96, 24, 44, "#394085", 3)
    pen.box(40, 132, 110, 58, "#c8553d", 10)
    pen.box(140, 92, 76, 98, "#c8553d", 8)
    pen.box(132, 84, 92, 14, "#8f3526", 5)
    pen.box(154, 108, 48, 36, "#ffe69a", 5)
    pen.disc(44, 154, 9, "#ffe69a")
    pen.shape([(40, 146), (40, 164), (-4, 186), (-4, 130)], "#5d5a63")
    pen.box(30, 184, 198, 12, "#2b2e4a", 3)
    for x, r in ((66, 20), (114, 20), (184, 24)):
        pen.disc(x, 218 - r, r, "#e9c46a")
        pen.disc(x, 218 - r, r * 0.6, "#2b2e4a")
    pen.box(0, 218, 256, 6, "#6b6f94")


@scene
def fox(pen: Pen) -> None:
    pen.fill("#b9d7ea")
    rng = random.Random(6)
    for _ in range(38):
        pen.disc(rng.uniform(0, 256), rng.uniform(0, 210), rng.uniform(1.6, 3.6), "#ffffff")
    pen.hill(228, 16, 60, "#f4fafd")
    pen.shape([(52, 40), (112, 76), (62, 122)], "#e36414")
    pen.shape([(204, 40), (144, 76), (194, 122)], "#e36414")
    pen.shape([(64, 62), (96, 82), (70, 104)], "#3d2314")
    pen.shape([(192, 62), (160, 82), (186, 104)], "#3d2314")
    pen.shape([(56, 104), (92, 72), (164, 72), (200, 104), (206, 142), (128, 214), (50, 142)], "#f07d24")
    pen.shape([(50, 142), (86, 134), (128, 176), (128, 214)], "#fff4e6")
    pen.shape([(206, 142), (170, 134), (128, 176), (128, 214)], "#fff4e6")
    for x in (96, 160):
        pen.disc(x, 124, 9, "#2b1a10", 11)
        pen.disc(x + 3, 120, 3, "#ffffff")
    pen.disc(128, 206, 13, "#2b1a10", 10)


@scene
def mushrooms(pen: Pen) -> None:
    pen.fill("#dfe8c8")
    for x, width in ((14, 22), (60, 14), (206, 24), (174, 12)):
        pen.box(x, 0, width, 220, "#b9c99a")
    pen.hill(222, 10, 0, "#5f7f3b")
    for x, y, r, cap in ((104, 128, 62, "#c1121f"), (194, 174, 36, "#e36a4f"), (40, 186, 26, "#e36a4f")):
        pen.box(x - r * 0.26, y - 4, r * 0.52, 226 - y, "#fbf3e4", r * 0.2)
        pen.disc(x, y, r * 0.8, "#e8d9bd", r * 0.16)
        pen.slice(x, y, r, 180, 360, cap)
        for dx, dy, s in ((-0.5, -0.35, 0.15), (0.02, -0.66, 0.17), (0.5, -0.32, 0.14), (0.08, -0.2, 0.1)):
            pen.disc(x + dx * r, y + dy * r, s * r, "#fff8f0")
    for x in (20, 70, 146, 226):
        pen.shape([(x, 236), (x + 8, 236), (x - 2, 206)], "#83a84f")
        pen.shape([(x + 4, 236), (x + 12, 236), (x + 15, 202)], "#83a84f")


@scene
def whale(pen: Pen) -> None:
    pen.fill("#48b6c9", "#0b3c5d", 9)
    pen.shape([(30, 0), (90, 0), (40, 256), (0, 256)], "#3fa3ba")
    pen.shape([(196, 130), (236, 76), (250, 82), (240, 112), (256, 132), (246, 142), (214, 156)], "#1f4e79")
    pen.disc(116, 142, 92, "#1f4e79", 54)
    pen.shape([(160, 100), (230, 124), (222, 148), (170, 186)], "#1f4e79")
    pen.disc(104, 168, 76, "#dcebf2", 26)
    pen.disc(118, 146, 91, "#1f4e79", 26)
    pen.shape([(104, 164), (150, 168), (124, 214)], "#17395c")
    pen.disc(56, 136, 8, "#f4fafd")
    pen.disc(55, 136, 4, "#0a1d30")
    pen.line([(30, 162), (52, 168), (80, 166)], "#17395c", 4)
    for x, y, r in ((66, 66, 9), (84, 44, 6), (62, 30, 4), (200, 214, 5), (216, 196, 7)):
        pen.ring(x, y, r, "#c9eef5", 2.4)


@scene
def sunflowers(pen: Pen) -> None:
    pen.fill("#8ecae6")
    pen.disc(222, 34, 46, "#fff3b0")
    pen.hill(240, 10, 0, "#588157")
    for x, y, r in ((88, 92, 46), (188, 128, 36), (36, 172, 26)):
        pen.line([(x, y), (x - 4, 256)], "#3a7d44", 9)
        pen.disc(x + 20, y + 84, 20, "#4f9d5b", 9)
        pen.disc(x - 24, y + 66, 18, "#4f9d5b", 9)
        for k in range(16):
            a = k * math.pi / 8
            px, py = x + r * 0.74 * math.cos(a), y + r * 0.74 * math.sin(a)
            wx, wy = r * 0.2 * math.cos(a + 1.57), r * 0.2 * math.sin(a + 1.57)
            tip = (x + r * 1.22 * math.cos(a), y + r * 1.22 * math.sin(a))
            pen.shape([(x, y), (px + wx, py + wy), tip, (px - wx, py - wy)], "#ffb703" if k % 2 else "#f79b00")
        pen.disc(x, y, r * 0.52, "#5c3a1e")
        pen.disc(x, y, r * 0.36, "#7a4f2a")


@scene
def teapot(pen: Pen) -> None:
    pen.fill("#f6e7d8")
    pen.box(0, 196, 256, 60, "#d8a47f")
    pen.ring(196, 132, 34, "#457b9d", 13, 270, 90)
    pen.shape([(66, 130), (66, 168), (20, 98), (36, 90)], "#457b9d")
    pen.disc(132, 144, 70, "#457b9d", 56)
    pen.box(92, 190, 80, 12, "#35607c", 5)
    pen.disc(132, 92, 38, "#35607c", 10)
    pen.disc(132, 86, 34, "#5f9bc0", 12)
    pen.disc(132, 70, 9, "#e9c46a")
    for x in (92, 118, 146, 172):
        pen.disc(x, 144, 9, "#f1faee")
        pen.disc(x, 144, 4, "#e9c46a")
    for x in (38, 218):
        pen.slice(x, 198, 24, 0, 180, "#f1faee")
        pen.box(x - 28, 219, 56, 6, "#e5d0bd", 3)
        pen.disc(x, 198, 24, "#9c5c2e", 5)
    for x in (34, 222):
        pen.line([(x, 182), (x + 5, 172), (x - 3, 162), (x + 3, 150)], "#ffffff", 4)


@scene
def pears(pen: Pen) -> None:
    pen.fill("#f2d492")
    pen.disc(128, 200, 112, "#cfae68", 34)
    pen.disc(128, 190, 112, "#2f5d8c", 36)
    pen.disc(128, 184, 84, "#487bb0", 24)
    for x, y, body, light, lean in ((84, 128, "#a7c957", "#c5df80", -6), (160, 134, "#dfa93a", "#f0c869", 8)):
        pen.disc(x, y + 22, 40, body, 42)
        pen.disc(x + lean * 0.6, y - 22, 24, body, 34)
        pen.shape([(x - 37, y + 6), (x + 37, y + 6), (x + lean + 20, y - 34), (x + lean - 20, y - 34)], body)
        pen.disc(x - 15, y + 18, 10, light, 18)
        pen.line([(x + lean, y - 52), (x + lean * 2, y - 74)], "#6b4423", 6)
        pen.disc(x + lean * 2 + 17, y - 70, 17, "#6a994e", 7)


@scene
def watermelon(pen: Pen) -> None:
    pen.fill("#ffe5ec")
    for x in range(0, 256, 32):
        pen.box(x, 224, 16, 32, "#ffb3c6")
    pen.box(0, 218, 256, 6, "#ffb3c6")
    pen.slice(128, 84, 118, 0, 180, "#2d6a4f")
    pen.slice(128, 84, 108, 0, 180, "#95d5b2")
    pen.slice(128, 84, 98, 0, 180, "#ef476f")
    pen.shape([(30, 84), (226, 84), (226, 76), (30, 76)], "#ffe5ec")
    for x, y in (
        (62, 108),
        (98, 104),
        (140, 110),
        (184, 106),
        (84, 140),
        (122, 150),
        (164, 142),
        (110, 174),
        (148, 170),
    ):
        pen.disc(x, y, 5, "#2b2d42", 8)
    pen.shape([(206, 74), (236, 112), (188, 118)], "#ffe5ec")
    pen.disc(212, 92, 15, "#ffe5ec")
    pen.disc(196, 78, 14, "#ffe5ec")


@scene
def cupcakes(pen: Pen) -> None:
    pen.fill("#bde0fe")
    pen.box(0, 206, 256, 50, "#8bb8e0")
    for x, y, r, frosting, paper in ((84, 136, 54, "#ffafcc", "#7b4b94"), (190, 162, 40, "#fdf0d5", "#d1495b")):
        height = 210 - y
        pen.shape([(x - r * 0.8, y), (x + r * 0.8, y), (x + r * 0.58, y + height), (x - r * 0.58, y + height)], paper)
        for k in (-2, -1, 0, 1, 2):
            pen.line([(x + k * r * 0.3, y + 10), (x + k * r * 0.22, y + height - 4)], "#f8e9ff", 3)
        pen.disc(x, y, r, frosting, r * 0.3)
        pen.disc(x, y - r * 0.34, r * 0.76, frosting, r * 0.34)
        pen.disc(x, y - r * 0.7, r * 0.48, frosting, r * 0.32)
        pen.disc(x, y - r * 1.14, r * 0.2, "#d62839")
        rng = random.Random(int(x))
        for _ in range(15):
            sx, sy = x + rng.uniform(-0.7, 0.7) * r, y - rng.uniform(-0.1, 0.8) * r
            pen.line([(sx, sy), (sx + 5, sy + 2)], rng.choice(("#ffbe0b", "#3a86ff", "#8338ec", "#06a77d")), 3)


@scene
def rocket(pen: Pen) -> None:
    pen.fill("#0b132b")
    pen.stars(7, 60, "#d6e0ff")
    pen.shape([(104, 120), (78, 186), (112, 170)], "#e63946")
    pen.shape([(160, 120), (186, 186), (152, 170)], "#e63946")
    pen.disc(132, 112, 30, "#f1faee", 84)
    pen.box(94, 176, 76, 30, "#0b132b")
    pen.disc(40, 236, 92, "#5bc0be")
    pen.disc(24, 208, 20, "#48a3a1")
    pen.disc(82, 232, 15, "#48a3a1")
    pen.shape([(112, 176), (152, 176), (132, 238)], "#ffb703")
    pen.shape([(120, 176), (144, 176), (132, 214)], "#fb5607")
    nose = [(132 + 30 * math.cos(a / 20), 112 - 84 * math.sin(a / 20)) for a in range(12, 52)]
    pen.shape(nose, "#e63946")
    pen.disc(132, 106, 17, "#457b9d")
    pen.disc(132, 106, 11, "#a8dadc")
    pen.box(112, 168, 40, 10, "#8d99ae", 3)


@scene
def volcano(pen: Pen) -> None:
    pen.fill("#ffcb69", "#e76f51", 5)
    for x, y, r in ((128, 44, 34), (160, 28, 28), (96, 30, 26), (186, 50, 18)):
        pen.disc(x, y, r, "#6d6875")
    pen.shape([(94, 84), (162, 84), (226, 206), (30, 206)], "#5b3a29")
    pen.shape([(128, 84), (162, 84), (226, 206), (150, 206)], "#47291b")
    pen.disc(128, 85, 34, "#c1121f", 9)
    pen.shape([(116, 58), (140, 58), (144, 86), (112, 86)], "#ff7b00")
    pen.shape([(106, 88), (126, 88), (118, 160), (98, 136)], "#ff5400")
    pen.shape([(134, 88), (150, 88), (168, 140), (148, 120)], "#ff5400")
    pen.box(0, 200, 256, 56, "#1a759f")
    pen.disc(128, 204, 104, "#e9c46a", 13)
    for x in (54, 208):
        pen.line([(x, 200), (x + 6, 172)], "#7f5539", 5)
        for dx, dy in ((-18, 2), (18, 0), (-10, -12), (14, -12)):
            pen.line([(x + 6, 172), (x + 6 + dx, 172 + dy)], "#2d6a4f", 6)
    for x, y in ((20, 226), (110, 236), (190, 224)):
        pen.box(x, y, 42, 4, "#52b2cf", 2)


@scene
def telescope(pen: Pen) -> None:
    pen.fill("#2a2356", "#6a4c93", 7)
    pen.stars(8, 44, "#f7e8ff", 170)
    pen.disc(54, 58, 24, "#f6bd60")
    pen.line([(20, 70), (88, 46)], "#f7d9a0", 5)
    pen.shape([(0, 256), (0, 224), (128, 190), (256, 224), (256, 256)], "#8c3b3b")
    pen.shape([(0, 232), (128, 198), (256, 232), (256, 240), (128, 206), (0, 240)], "#a84c4c")
    for x in (88, 128, 168):
        pen.line([(128, 132), (x, 206)], "#3b2f2f", 7)
    pen.shape([(196, 44), (222, 84), (108, 154), (90, 124)], "#f1faee")
    pen.shape([(194, 42), (206, 34), (236, 80), (224, 88)], "#e0a13a")
    pen.shape([(104, 116), (122, 146), (90, 164), (74, 136)], "#d9dcd6")
    pen.shape([(72, 142), (86, 162), (70, 168), (60, 152)], "#3b2f2f")
    pen.disc(132, 134, 12, "#e0a13a")


@scene
def butterfly(pen: Pen) -> None:
    pen.fill("#e9f5db")
    for x, y, r in ((30, 220, 18), (222, 34, 15), (220, 222, 20), (34, 36, 13)):
        for k in range(5):
            a = k * 2 * math.pi / 5
            pen.disc(x + r * math.cos(a), y + r * math.sin(a), r * 0.62, "#cfe1b9")
        pen.disc(x, y, r * 0.5, "#fefae0")
    for side in (-1, 1):
        pen.shape(
            [(128, 124), (128 + side * 42, 44), (128 + side * 98, 46), (128 + side * 94, 120), (128, 140)], "#f3722c"
        )
        pen.disc(128 + side * 68, 84, 44, "#f3722c", 42)
        pen.disc(128 + side * 56, 168, 42, "#f9844a", 38)
        pen.disc(128 + side * 70, 82, 24, "#f9c74f", 22)
        pen.disc(128 + side * 58, 170, 20, "#f9c74f", 17)
        pen.disc(128 + side * 70, 82, 9, "#3c1642")
        pen.disc(128 + side * 58, 170, 7, "#3c1642")
        pen.line([(128, 84), (128 + side * 13, 56), (128 + side * 28, 42)], "#3c1642", 4)
        pen.disc(128 + side * 28, 42, 5, "#3c1642")
    pen.disc(128, 136, 9, "#3c1642", 58)
    pen.disc(128, 82, 11, "#3c1642")


@scene
def house(pen: Pen) -> None:
    pen.fill("#cde7f0")
    pen.disc(210, 44, 22, "#ffd166")
    pen.box(0, 206, 256, 50, "#90be6d")
    pen.box(160, 54, 22, 48, "#7d4f50")
    pen.box(56, 112, 144, 98, "#f8f4ec")
    pen.shape([(36, 118), (128, 44), (220, 118)], "#9b2226")
    pen.box(112, 144, 34, 66, "#ffc300", 4)
    pen.disc(139, 180, 3.4, "#7f5539")
    for x in (70, 160):
        pen.box(x, 136, 28, 32, "#577590", 2)
        pen.box(x + 12, 136, 4, 32, "#f8f4ec")
        pen.box(x, 150, 28, 4, "#f8f4ec")
    pen.shape([(112, 210), (146, 210), (178, 256), (86, 256)], "#d9c5a0")
    for x, y, r in ((26, 190, 26), (232, 186, 28)):
        pen.box(x - 4, y, 8, 40, "#7f5539")
        pen.disc(x, y - 6, r, "#4d908e", r * 1.3)


@scene
def cat(pen: Pen) -> None:
    pen.fill("#e8c7a6")
    pen.box(34, 18, 188, 186, "#ffffff", 4)
    pen.box(44, 28, 168, 176, "#a9d6e5")
    pen.disc(176, 66, 20, "#fff3b0")
    pen.disc(80, 206, 50, "#8ab17d", 44)
    pen.disc(172, 210, 46, "#6f9d68", 34)
    pen.box(0, 204, 256, 52, "#e8c7a6")
    pen.box(34, 18, 10, 190, "#ffffff")
    pen.box(212, 18, 10, 190, "#ffffff")
    pen.box(124, 28, 8, 176, "#ffffff")
    pen.box(18, 202, 220, 18, "#ffffff", 4)
    pen.box(18, 216, 220, 6, "#d5b596", 3)
    pen.line([(164, 196), (202, 196), (214, 172), (206, 152)], "#2f2f3a", 13)
    pen.disc(128, 168, 46, "#2f2f3a", 40)
    pen.disc(104, 112, 33, "#2f2f3a", 29)
    pen.shape([(74, 108), (72, 66), (102, 88)], "#2f2f3a")
    pen.shape([(134, 108), (136, 66), (106, 88)], "#2f2f3a")
    for x in (92, 117):
        pen.disc(x, 110, 7, "#f9c74f")
        pen.disc(x, 110, 3, "#14141a", 7)
    pen.shape([(100, 121), (109, 121), (104.5, 127)], "#f28482")
    for y in (124, 130):
        pen.line([(84, y), (62, y - 3 + (y - 124))], "#f4f1de", 1.6)
        pen.line([(125, y), (147, y - 3 + (y - 124))], "#f4f1de", 1.6)


@scene
def cactus(pen: Pen) -> None:
    pen.fill("#fcd5ce")
    pen.disc(128, 100, 84, "#f8b4a6")
    pen.box(0, 212, 256, 44, "#b5838d")
    pen.box(102, 44, 46, 140, "#40916c", 23)
    pen.line([(112, 124), (70, 124), (70, 88)], "#40916c", 25)
    pen.line([(140, 108), (182, 108), (182, 66)], "#40916c", 23)
    for x in (114, 136):
        pen.line([(x, 62), (x, 172)], "#74c69d", 3)
    for x, y in ((125, 42), (70, 76), (182, 54)):
        for k in range(5):
            a = k * 2 * math.pi / 5 - 1.57
            pen.disc(x + 8 * math.cos(a), y + 8 * math.sin(a), 6, "#e5446d")
        pen.disc(x, y, 5, "#ffd166")
    pen.shape([(76, 174), (176, 174), (162, 232), (90, 232)], "#bc6c25")
    pen.box(70, 164, 112, 20, "#dd8a3c", 5)


@scene
def candles(pen: Pen) -> None:
    pen.fill("#3a0f2b")
    for x, y, h, colour in ((72, 118, 96, "#f2e9e4"), (130, 84, 130, "#e8b4b8"), (188, 136, 78, "#f2e9e4")):
        pen.disc(x, y - 26, 40, "#56203f")
        pen.disc(x, y - 26, 27, "#7a3350")
        pen.box(x - 19, y, 38, h, colour, 5)
        pen.disc(x, y + 4, 19, "#fffaf5", 6)
        pen.box(x - 15, y + 4, 8, 30, "#fffaf5", 4)
        pen.line([(x, y + 2), (x, y - 10)], "#2b1a10", 3)
        pen.disc(x, y - 20, 9, "#ffb627", 14)
        pen.shape([(x - 7, y - 28), (x + 7, y - 28), (x, y - 48)], "#ffb627")
        pen.disc(x, y - 16, 4.5, "#fff3c4", 8)
    pen.box(28, 212, 204, 12, "#c9952f", 6)
    pen.box(64, 224, 132, 10, "#9c6f1d", 5)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _scaled(*values: float) -> list[float]:
    return [value * SCALE for value in values]


def draw(name: str) -> Image.Image:
    """One scene, finished."""
    pen = Pen()
    SCENES[name](pen)
    return pen.image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in SCENES:
        draw(name).save(folder / f"{name}.webp", quality=88, method=6)
    print(f"{len(SCENES)} reference images in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "references")
