"""A scatter plot as SVG: nothing to install, and a diff that can be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from icg.tiny.files import write_whole

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 50
COLOURS = ("#1f6fb2", "#c4501b", "#3a8f4d", "#8250a8")

Point = tuple[float, float, str]
"""x, y and what stands beside the point."""


def chart(
    path: Path, title: str, x: str, y: str, series: Mapping[str, Sequence[Point]], wanted: float | None = None
) -> None:
    """Write the plot.

    Args:
        series: points by name, joined in their order.
        wanted: a dashed line at this y.

    Raises:
        ValueError: there is no point.
    """
    every = [point for points in series.values() for point in points]
    if not every:
        raise ValueError("nothing to plot")
    across = _axis([point[0] for point in every])
    up = _axis([point[1] for point in every] + ([] if wanted is None else [wanted]))

    def place(a: float, b: float) -> tuple[float, float]:
        return (
            LEFT + (a - across[0]) / (across[-1] - across[0]) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (b - up[0]) / (up[-1] - up[0]) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 20, title, "middle", 14),
        _text(WIDTH / 2, HEIGHT - 10, x, "middle"),
        f'<g transform="translate(16 {HEIGHT / 2}) rotate(-90)">{_text(0, 0, y, "middle")}</g>',
    ]
    for tick in across:
        a, b = place(tick, up[0])
        parts += [_line(a, b, a, TOP, "#ddd"), _text(a, b + 16, f"{tick:.3g}", "middle")]
    for tick in up:
        a, b = place(across[0], tick)
        parts += [_line(a, b, WIDTH - RIGHT, b, "#ddd"), _text(a - 6, b + 4, f"{tick:.3g}", "end")]
    if wanted is not None:
        a, b = place(across[0], wanted)
        parts.append(_line(a, b, WIDTH - RIGHT, b, "#555", "6 4"))
    for row, (name, points) in enumerate(series.items()):
        colour = COLOURS[row % len(COLOURS)]
        spots = [place(a, b) for a, b, _ in points]
        joined = " ".join(f"{a:.1f},{b:.1f}" for a, b in spots)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-opacity="0.5"/>')
        for (a, b), (_, _, label) in zip(spots, points, strict=True):
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"/>', _text(a + 6, b - 6, label, "start")]
        parts += [
            f'<circle cx="{LEFT + 12}" cy="{TOP + 12 + 16 * row}" r="4" fill="{colour}"/>',
            _text(LEFT + 22, TOP + 16 + 16 * row, name, "start"),
        ]
    body = "\n".join([*parts, "</svg>"]) + "\n"
    write_whole(path, lambda partial: partial.write_text(body))


def _axis(values: Sequence[float], ticks: int = 6) -> list[float]:
    """Evenly spaced ticks with a tenth of the range as margin."""
    low, high = min(values), max(values)
    margin = (high - low) / 10 or abs(high) / 10 or 1.0
    low, high = low - margin, high + margin
    return [low + (high - low) * k / (ticks - 1) for k in range(ticks)]


def _text(x: float, y: float, words: str, anchor: str, size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str = "") -> str:
    more = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{more}/>'
