"""Whether the stored text features are those of the captions: by a hash, among each other, and by CLIP itself."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import tqdm
from jaxtyping import Bool, Float, UInt64

from mmaudio_jax.data.captions import tokenize
from mmaudio_jax.data.check import duplicates
from mmaudio_jax.data.check.findings import NEEDS_WEIGHTS, Check, Place, Rows, fault, left_out, spread
from mmaudio_jax.data.example import StoredFeatures, check_arrays
from mmaudio_jax.errors import UserError

NAME = "text features of another caption"
SAME = 0.95  # least cosine of a token's vectors of one text, whatever dtype and device they were computed with
CHUNK = 16  # captions that CLIP reads at once

Encode = Callable[[Sequence[str]], Float[np.ndarray, "b 77 d"]]


def check_texts(
    features: StoredFeatures, captions: Sequence[str], most: int, encode: Encode | None, rows: Rows
) -> Check:
    """Compares all captions with the hash of those that were encoded, and some with what CLIP makes of them.

    Args:
        features: the set, whose table fits.
        captions: one an example.
        most: examples that CLIP is asked about, spread evenly over those with a caption.
        encode: captions to text features; None leaves those uncompared.
        rows: where the examples are.
    """
    check = fault(NAME)
    try:
        guarded = features.check_captions()
    except UserError as error:
        guarded = True
        check.add(Place(str(error)))
    if not encode:
        return check if guarded else left_out(NAME, NEEDS_WEIGHTS)
    told = [i for i, caption in enumerate(captions) if caption.strip()]
    of_caption: dict[str, list[int]] = defaultdict(list)
    for i in spread(told, most):
        of_caption[captions[i]].append(i)
    distinct, compared, others = list(of_caption), 0, 0
    for start in tqdm.trange(0, len(distinct), CHUNK, desc="reading captions", delay=2, disable=None):
        some = distinct[start : start + CHUNK]
        for caption, read in zip(some, encode(some), strict=True):
            for i in of_caption[caption]:
                stored = _stored(features, i)
                if stored is None:
                    continue
                compared += 1
                if (alike := _least_cosine(stored, read)) < SAME:
                    others += 1
                    check.add(rows.place(i, f"those stored are not of {caption[:60]!r} (cosine {alike:.2f})"))
    check.note = f"{others} of {compared} captions"
    return check


def check_differ(
    texts: UInt64[np.ndarray, " n"], there: Bool[np.ndarray, " n"], captions: Sequence[str], rows: Rows
) -> Check:
    """No two captions that CLIP reads otherwise have the same features.

    Args:
        texts: a hash of each example's text features.
        there: which examples have any.
        captions: one an example.
        rows: where the examples are.
    """
    check = fault("the same text features for different captions")
    for group in duplicates.same(texts, there):
        distinct = {captions[i]: i for i in reversed(group)}
        if len(distinct) > 1:
            read = dict(zip(map(bytes, tokenize([*distinct])), distinct.values(), strict=True))
            if len(read) > 1:
                check.add(rows.together(sorted(read.values())))
    return check


def _stored(features: StoredFeatures, index: int) -> Float[np.ndarray, "77 d"] | None:
    """The text features of an example; None where there are none or they are damaged."""
    try:
        arrays = features.read(index)
        check_arrays(arrays, features.metadata.shapes)
    except ValueError:
        return None
    return arrays.get("text_f")


def _least_cosine(one: Float[np.ndarray, "n d"], other: Float[np.ndarray, "n d"]) -> float:
    """Of the vectors of any token."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float((np.sum(one * other, axis=1) / norms).min())
