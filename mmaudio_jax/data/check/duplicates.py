"""The same content under two ids: exactly, by hash, or nearly, by the nearest neighbour of a small sketch.

Of an example, a hash of 64 bits of its sound, one of its picture, and a sketch of 16 numbers are kept. Of a million
examples, two that differ have the same hash with a probability of 3·10⁻⁸.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from mmaudio_jax.data.check.findings import Check, Rows, fault, warning

SKETCH = 16  # numbers
NEAR = 0.05  # in units of the root mean square distance of two examples
CHUNK = 10_000  # queries of the nearest neighbour at once


def content_hash(array: np.ndarray) -> np.uint64:
    """64 bits of BLAKE2b over the bytes."""
    return np.frombuffer(hashlib.blake2b(np.ascontiguousarray(array), digest_size=8).digest(), np.uint64)[0]


def sketch(latent: Float[np.ndarray, "n z"]) -> Float[np.ndarray, " 16"]:
    """Random projections of a whole latent, which keep distances roughly (Johnson and Lindenstrauss, 1984)."""
    return latent.ravel() @ _projection(latent.size)


def difference(one: Float[np.ndarray, " 16"], other: Float[np.ndarray, " 16"]) -> float:
    """About the root mean square difference of two latents, by their sketches."""
    return float(np.linalg.norm(one - other) / np.sqrt(SKETCH))


@functools.lru_cache(maxsize=1)
def _projection(size: int) -> Float[np.ndarray, "size 16"]:
    return (np.random.default_rng(0).standard_normal((size, SKETCH)) / np.sqrt(size)).astype(np.float32)


def same(hashes: UInt64[np.ndarray, " n"], there: Bool[np.ndarray, " n"]) -> Iterator[Int[np.ndarray, " k"]]:
    """The indices of each hash that occurs more than once among those that are there."""
    indices = np.flatnonzero(there)
    _, inverse, counts = np.unique(hashes[indices], return_inverse=True, return_counts=True)
    often = counts[inverse] > 1
    indices, inverse = indices[often], inverse[often]
    order = np.argsort(inverse, kind="stable")
    ends = np.flatnonzero(np.diff(inverse[order])) + 1
    return (group for group in np.split(indices[order], ends) if len(group))


def near(
    sketches: Float[np.ndarray, "n 16"], hashes: UInt64[np.ndarray, " n"], there: Bool[np.ndarray, " n"]
) -> Iterator[tuple[int, int]]:
    """Pairs of an example and its nearest neighbour of other content, each once, that are nearly the same."""
    from scipy.spatial import cKDTree

    indices = np.flatnonzero(there)
    indices = indices[np.unique(hashes[indices], return_index=True)[1]]  # one of each content
    points = sketches[indices]
    if len(points) < 3:
        return
    # by medians, so that one far off does not make the others near: of squares of so many numbers, it is 0.96 the mean
    off = np.square(points - np.median(points, axis=0), dtype=np.float64).sum(axis=1)
    reach = NEAR * np.sqrt(2 * np.median(off) / 0.96)
    if not reach:
        return
    tree, told = cKDTree(points), set()
    for start in range(0, len(points), CHUNK):
        distances, neighbours = tree.query(points[start : start + CHUNK], 2, distance_upper_bound=reach)
        for i in np.flatnonzero(np.isfinite(distances[:, 1])):  # the nearest of all is the point itself
            other = next(k for k in neighbours[i] if k != start + i)
            pair = tuple(sorted((int(indices[start + i]), int(indices[other]))))
            if pair not in told:
                told.add(pair)
                yield pair


def check_duplicates(
    sounds: UInt64[np.ndarray, " n"],
    pictures: UInt64[np.ndarray, " n"],
    has_sound: Bool[np.ndarray, " n"],
    has_picture: Bool[np.ndarray, " n"],
    sketches: Float[np.ndarray, "n 16"],
    captions: Sequence[str],
    splits: Sequence[str],
    rows: Rows,
) -> list[Check]:
    """The same or nearly the same content under two ids, and in two parts of the data.

    A sound may come with several captions, as some published sets have it, and a picture with several sounds.
    """
    double, again = fault("the same sound and caption twice"), warning("the same sound with another caption")
    seen, leaked = warning("the same picture with another sound"), fault("the same content in two splits")
    alike, near_leaked = warning("nearly the same sound"), warning("nearly the same sound in two splits")

    def parts(group: Sequence[int]) -> list[str]:
        return list(dict.fromkeys(splits[i] for i in group))

    def leak(check: Check, group: Sequence[int], what: str) -> None:
        if len(parts(group)) > 1:
            first = {splits[i]: i for i in reversed(group)}
            check.add(rows.together(sorted(first.values()), f"the {what} is in {' and '.join(parts(group))}"))

    for group in same(sounds, has_sound):
        leak(leaked, group, "sound")
        alone = len({captions[i] for i in group}) == len(group)
        (again if alone else double).add(rows.together(group))
    for group in same(pictures, has_picture):
        leak(leaked, group, "picture")
        if len({sounds[i] for i in group}) > 1:
            seen.add(rows.together(group))
    for pair in near(sketches, sounds, has_sound):
        leak(near_leaked, pair, "sound")
        alike.add(rows.together(pair))
    return [double, again, seen, leaked, alike, near_leaked]
