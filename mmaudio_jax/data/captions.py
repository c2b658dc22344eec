"""Captions to CLIP's token ids, from the packaged vocabulary: offline, equal to open_clip's ids."""

import functools
import html
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

VOCABULARY = Path(__file__).parent / "clip_vocabulary"
CONTEXT_LENGTH = 77
AROUND = 30  # characters on both sides of a cut that a remark shows
START, END, PAD = 49406, 49407, 0
WORD = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""  # what byte-pair encoding never crosses


def clean(caption: str) -> str:
    """The text that CLIP was trained on: mended Unicode, no HTML entities, single spaces, lower case."""
    import ftfy

    # entities are unescaped twice because scraped captions are often escaped twice
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(caption))).split()).lower()


def is_empty(caption: str) -> bool:
    """Whether there is nothing to read in it: spaces, control and format characters at most, as that of width zero."""
    return all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in caption)


def tokenize(captions: Sequence[str]) -> Int[np.ndarray, "n 77"]:
    """Token ids, int32: the start 49406, the caption, the end 49407, then zeros.

    A caption that does not fit (`count_tokens` above 77) is cut; its last id is still the end.
    """
    ids = np.full((len(captions), CONTEXT_LENGTH), PAD, np.int32)
    for row, caption in zip(ids, captions, strict=True):
        found = _encode(caption)
        row[: len(found)] = found[:CONTEXT_LENGTH]
        if len(found) > CONTEXT_LENGTH:
            row[-1] = END
    return ids


@functools.lru_cache(maxsize=1 << 16)
def count_tokens(caption: str) -> int:
    """How many ids the whole caption has, start and end included; above 77 `tokenize` cuts it."""
    return len(_encode(caption))


def is_cut(caption: str) -> bool:
    """Whether CLIP reads only the beginning; most captions need no counting, as no token has less than a letter."""
    short = caption.isascii() and len(caption) <= CONTEXT_LENGTH - 2  # other letters may become several
    return not short and count_tokens(caption) > CONTEXT_LENGTH


def cut(caption: str) -> tuple[str, str] | None:
    """What CLIP reads of a caption that does not fit, and what it does not; None if all of it fits."""
    text = clean(caption)
    encoded = _tokenizer()(text, return_offsets_mapping=True)
    if len(encoded["input_ids"]) <= CONTEXT_LENGTH:
        return None
    _, end = encoded["offset_mapping"][CONTEXT_LENGTH - 2]  # then comes the end
    return text[:end], text[end:]


def remark_of_cut(prompt: str) -> str:
    """Where CLIP stops reading a prompt that does not fit, with the words on both sides; empty if all of it fits."""
    if (parts := cut(prompt)) is None:
        return ""
    read, rest = (text.strip() for text in parts)
    return f"CLIP reads the prompt up to “…{read[-AROUND:]}”, not “{rest[:AROUND]}…”"


def _encode(caption: str) -> list[int]:
    return _tokenizer()(clean(caption))["input_ids"]


@functools.cache
def _tokenizer():
    # transformers remarks on import that PyTorch is absent, which a tokenizer does not care about
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from tokenizers import Regex, pre_tokenizers
    from transformers import CLIPTokenizer

    # open_clip's names of the two special tokens; like there, a caption that spells one gets its id
    start, end = "<start_of_text>", "<end_of_text>"
    tokenizer = CLIPTokenizer(
        vocab=str(VOCABULARY / "vocab.json"),
        merges=str(VOCABULARY / "merges.txt"),
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=end,
    )
    # transformers' own rule keeps "<|startoftext|>" and "<|endoftext|>" in one piece; to open_clip they are plain text
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer
