"""Draws the scenes of the small world. Edges are soft, so that motion of less than a pixel is seen."""

import numpy as np
from jaxtyping import Float, UInt8

from mmaudio_jax.demo.world import ARM, BLOCK, FLOOR, PIVOT, WALLS, Scene

SIZE = 224  # pixels each way

Canvas = Float[np.ndarray, "224 224 3"]
Colour = Float[np.ndarray, "3"]

Y, X = np.mgrid[:SIZE, :SIZE] + 0.5
HEAD = 0.07  # of the mallet, picture heights


class Palette:
    """A scene's colours, drawn from the seed; they say nothing of its sound."""

    def __init__(self, rng: np.random.Generator):
        self.sky = rng.uniform(20, 90, 3)
        self.ground = rng.uniform(60, 140, 3)
        self.things = rng.uniform(110, 255, (16, 3))


def draw(scene: Scene, palette: Palette, t: float) -> UInt8[np.ndarray, "224 224 3"]:
    """The picture of a scene at a time."""
    canvas = np.empty((SIZE, SIZE, 3))
    canvas[:] = palette.sky
    canvas[round(FLOOR * SIZE) :] = palette.ground
    if scene.kind == "roll":
        canvas[:, : round(WALLS[0] * SIZE)] = canvas[:, round(WALLS[1] * SIZE) :] = palette.ground
    if scene.mallet is not None:
        _mallet(canvas, palette, scene.mallet(t))
    for i, ball in enumerate(scene.balls):
        x, y = ball.at(t)
        _disc(canvas, x, y, ball.radius, palette.things[i % len(palette.things)])
    return (canvas + 0.5).astype(np.uint8)


def _mallet(canvas: Canvas, palette: Palette, angle: float) -> None:
    """An arm with a head over a block, on which the head lies when the angle is 0."""
    canvas[round(BLOCK * SIZE) : round(FLOOR * SIZE), round(0.5 * SIZE) : round(0.85 * SIZE)] = palette.ground
    rest = np.arcsin((BLOCK - HEAD - PIVOT[1]) / ARM)  # the arm's angle below the horizontal at contact
    x, y = PIVOT[0] + ARM * np.cos(rest - angle), PIVOT[1] + ARM * np.sin(rest - angle)
    along = np.array([x - PIVOT[0], y - PIVOT[1]]) / ARM
    u = (X / SIZE - PIVOT[0]) * along[0] + (Y / SIZE - PIVOT[1]) * along[1]
    v = (Y / SIZE - PIVOT[1]) * along[0] - (X / SIZE - PIVOT[0]) * along[1]
    inside = np.minimum(0.012 - np.abs(v), np.minimum(u, ARM - u))
    _blend(canvas, slice(None), slice(None), inside, palette.things[0])
    _disc(canvas, x, y, HEAD, palette.things[1])


def _disc(canvas: Canvas, x: float, y: float, radius: float, colour: Colour) -> None:
    rows, columns = (slice(max(int((c - radius) * SIZE) - 1, 0), max(int((c + radius) * SIZE) + 2, 0)) for c in (y, x))
    distance = np.hypot(X[rows, columns] / SIZE - x, Y[rows, columns] / SIZE - y)
    _blend(canvas, rows, columns, radius - distance, colour)


def _blend(canvas: Canvas, rows: slice, columns: slice, inside: np.ndarray, colour: Colour) -> None:
    """Paints where `inside`, the depth below the shape's edge in picture heights, is positive."""
    share = np.clip(inside * SIZE + 0.5, 0, 1)[..., None]
    canvas[rows, columns] += share * (colour - canvas[rows, columns])
