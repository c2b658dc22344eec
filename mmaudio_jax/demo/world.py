"""A small world: things fall, bounce, knock and roll, and every contact is heard when it is seen.

A scene is drawn from (seed, index): what moves and when it touches something, of what material that is, and the words
for it. What is seen says when; only the caption says of what material. `pictures` draws a scene, `sounds` plays it.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

MATERIALS = ("wood", "metal", "drum", "glass")
BASE_MATERIALS = MATERIALS[:3]  # the demo's base hears these alone
NEW_MATERIAL = "glass"

GRAVITY = 4.0  # picture heights per second squared
FLOOR = 0.85  # height of the floor's surface from the top; lengths are in picture heights, from the upper left corner
WALLS = (0.08, 0.92)
PIVOT, ARM, BLOCK = (0.22, 0.42), 0.44, 0.62  # the mallet's axis, its length, and the top of the block that it strikes
STRIKE, RETURN = 0.18, 0.2  # seconds of the mallet's way down and up
LEAST_GAP = 0.16  # seconds: contacts closer than this would be heard as one

Body = Callable[[float], tuple[float, float]]  # seconds → its centre (x, y)


class Contact(NamedTuple):
    """Something touches something: seconds from the start, and how hard, in (0, 1]."""

    time: float
    strength: float


class Ball(NamedTuple):
    """A ball of some radius and its way."""

    radius: float
    at: Body


class Scene(NamedTuple):
    """What a scene shows and lets hear.

    Attributes:
        kind: fall, bounce, knock or roll.
        material: what is struck.
        caption: words for it, the material among them.
        contacts: in the order of time, all within the duration.
        balls: what moves; drawn in this order.
        mallet: angle of the mallet over the block by time, or None.
        rolling: speed of what rolls by time, in picture widths a second, or None.
        wind: whether wind is heard.
    """

    kind: str
    material: str
    caption: str
    contacts: list[Contact]
    balls: tuple[Ball, ...]
    mallet: Callable[[float], float] | None
    rolling: Callable[[float], float] | None
    wind: bool


class Motion(NamedTuple):
    """The moving part of a scene."""

    contacts: list[Contact]
    balls: tuple[Ball, ...] = ()
    mallet: Callable[[float], float] | None = None
    rolling: Callable[[float], float] | None = None


def make_scene(seed: int, index: int, materials: Sequence[str], duration: float) -> Scene:
    """The scene of (seed, index): kinds and then materials take turns, everything else is drawn.

    Args:
        seed: of the world.
        index: of the scene in it.
        materials: what may be struck, of `MATERIALS`.
        duration: seconds.
    """
    rng = np.random.default_rng((seed, index))
    kind = list(KINDS)[index % len(KINDS)]
    material = materials[index // len(KINDS) % len(materials)]
    move, phrases = KINDS[kind]
    motion = move(rng, duration)
    wind = bool(rng.random() < 0.3)
    phrase = str(rng.choice(phrases)).format({"drum": "a drum"}.get(material, material))
    caption = phrase + (str(rng.choice([", the wind blows", " in the wind"])) if wind else "")
    return Scene(
        kind=kind,
        material=material,
        caption=caption,
        contacts=[contact for contact in motion.contacts if 0 <= contact.time < duration],
        balls=motion.balls,
        mallet=motion.mallet,
        rolling=motion.rolling,
        wind=wind,
    )


def _times(rng: np.random.Generator, duration: float, least: float, most: float) -> list[float]:
    """Irregular times from just after the start until after the end."""
    times = [rng.uniform(0.2, 0.8)]
    while times[-1] < duration:
        times.append(times[-1] + rng.uniform(least, most))
    return times


def _fall(rng: np.random.Generator, duration: float) -> Motion:
    """Stones fall from above, one after another, and lie where they land."""
    contacts, balls = [], []
    for time in _times(rng, duration, 0.4, 1.5):
        radius, x = rng.uniform(0.04, 0.08), rng.uniform(0.15, 0.85)
        height = rng.uniform(1.0, 1.5)
        start = time - (2 * height / GRAVITY) ** 0.5

        def at(t, start=start, x=x, rest=FLOOR - radius, height=height):
            return x, min(rest - height + 0.5 * GRAVITY * max(t - start, 0) ** 2, rest)

        contacts.append(Contact(time, 0.5 + radius / 0.16))
        balls.append(Ball(radius, at))
    return Motion(contacts, tuple(balls))


def _bounce(rng: np.random.Generator, duration: float) -> Motion:
    """Balls bounce through the picture, each lower and lower."""
    contacts, balls, enter = [], [], rng.uniform(-1.5, 0.0)
    while enter < duration:
        radius, crossing = rng.uniform(0.05, 0.09), rng.uniform(2.2, 4.0)
        way = (-radius, 1 + radius)[:: rng.choice([-1, 1])]
        flight, kept = rng.uniform(0.6, 0.95), rng.uniform(0.85, 0.97)
        touches = [enter - rng.uniform(0, 0.5) * flight]
        flights = []
        while touches[-1] < enter + crossing:
            flights.append(flight)
            touches.append(touches[-1] + flight)
            flight = max(flight * kept, 0.4)

        def at(t, enter=enter, crossing=crossing, way=way, touches=touches, flights=flights, rest=FLOOR - radius):
            x = way[0] + (way[1] - way[0]) * (t - enter) / crossing
            i = int(np.clip(np.searchsorted(touches, t, side="right") - 1, 0, len(flights) - 1))
            since = min(max(t - touches[i], 0), flights[i])
            return x, rest - 0.5 * GRAVITY * since * (flights[i] - since)

        contacts += [
            Contact(touch, flight / 0.95)
            for touch, flight in zip(touches, flights, strict=False)
            if enter + 0.1 < touch < enter + crossing - 0.1
        ]
        balls.append(Ball(radius, at))
        enter += crossing + rng.uniform(0.0, 0.4)
    return Motion(contacts, tuple(balls))


def _knock(rng: np.random.Generator, duration: float) -> Motion:
    """A mallet strikes a block."""
    times, raised = _times(rng, duration, 0.45, 1.5), rng.uniform(0.5, 0.9)
    strengths = rng.uniform(0.5, 1.0, len(times))

    def angle(t):
        i = int(np.searchsorted(times, t))
        down = 1 - (1 - max(times[i] - t, 0) / STRIKE) ** 2 if i < len(times) and times[i] - t < STRIKE else 1.0
        up = 1 - (1 - min((t - times[i - 1]) / RETURN, 1)) ** 2 if i > 0 else 1.0
        return raised * min(down, up)

    return Motion([Contact(*pair) for pair in zip(times, strengths, strict=True)], mallet=angle)


def _roll(rng: np.random.Generator, duration: float) -> Motion:
    """A ball rolls from wall to wall."""
    radius, side = rng.uniform(0.06, 0.1), int(rng.integers(2))
    touches = _times(rng, duration, 0.5, 1.4)
    touches = [min(touches[0] - rng.uniform(0.6, 1.2), 0.0), *touches]  # it is on its way when the scene begins
    ends = (WALLS[0] + radius, WALLS[1] - radius)
    speeds = [(ends[1] - ends[0]) / (b - a) for a, b in itertools.pairwise(touches)]

    def crossing(t):
        return int(np.clip(np.searchsorted(touches, t, side="right") - 1, 0, len(speeds) - 1))

    def at(t):
        i = crossing(t)
        way = speeds[i] * (t - touches[i])
        return (ends[0] + way if (i + side) % 2 else ends[1] - way), FLOOR - radius

    hardest = max(speeds)
    contacts = [Contact(t, 0.4 + 0.6 * speed / hardest) for t, speed in zip(touches[1:], speeds, strict=True)]
    return Motion(contacts, (Ball(radius, at),), rolling=lambda t: speeds[crossing(t)])


# kind: (how it moves, words for it)
KINDS = {
    "fall": (_fall, ("stones fall on {}", "something drops onto {}", "{}: a stone falls down")),
    "bounce": (_bounce, ("a ball bounces on {}", "balls bounce over {}", "{} under a bouncing ball")),
    "knock": (_knock, ("a mallet knocks on {}", "someone strikes {}", "knocking on {}")),
    "roll": (_roll, ("a ball rolls and hits {}", "rolling, and knocks against {}", "{} struck by a rolling ball")),
}
