"""Title and comment of a sound or a video, as its file keeps them."""

from collections.abc import Mapping

TAGS = ("title", "comment")  # what WAV, FLAC and mp4 all keep


def checked(tags: Mapping[str, str] | None) -> dict[str, str]:
    """The tags that are not empty.

    Raises:
        ValueError: a name that is none of `TAGS`.
    """
    if unknown := (tags or {}).keys() - set(TAGS):
        raise ValueError(f"files keep {' and '.join(TAGS)}, not {', '.join(sorted(unknown))}")
    return {name: text for name, text in (tags or {}).items() if text}
