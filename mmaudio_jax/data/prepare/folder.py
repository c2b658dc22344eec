"""The media files of a folder, and which of them a name means."""

import os
import posixpath
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

from mmaudio_jax.data.table import SAVE_AS_UTF_8
from mmaudio_jax.data.wording import count
from mmaudio_jax.errors import UserError

VIDEO = frozenset(".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
IMAGE = frozenset(".avif .bmp .jpeg .jpg .png .tif .tiff .webp".split())
AUDIO = frozenset(".aac .aif .aiff .flac .m4a .mp3 .oga .ogg .opus .wav .wma".split())


class MediaFolder:
    """What lies in a folder and below it; hidden files are left out, and symbolic links are not followed.

    Attributes:
        root: the folder.
        names: paths of the media files within it, with slashes, in order.
        remarks: what could not be looked at, a sentence each.
    """

    def __init__(self, root: str | os.PathLike, suffixes: Collection[str] = VIDEO | AUDIO):
        """Looks through the folder for files with these suffixes.

        Raises:
            UserError: it is no folder that can be read, or no media file is in it.
        """
        self.root = Path(root).resolve()
        if self.root.is_file():
            raise UserError(f"{root} is a file; name the folder that it is in")
        if not self.root.is_dir():
            raise UserError(f"there is no folder {root}")
        self.remarks: list[str] = []
        self._links: list[str] = []
        self._suffixes = suffixes
        self._unnamed = 0
        self.names = sorted(self._walk(""))
        if self._links:
            self.remarks.append(
                f"symbolic links are not followed, and here are {len(self._links)}, the first {self._links[0]}: put "
                "the files here (a hard link, cp -l, takes no room), or name the folder where they lie"
            )
        if self._unnamed:
            self.remarks.append(f"{count(self._unnamed, 'file')} left out whose name is not in UTF-8; rename to use")
        if not self.names:
            hindered = "".join(f"; {remark}" for remark in self.remarks)
            raise UserError(f"no media file is in {root} (looked for {' '.join(sorted(suffixes))}){hindered}")
        self._paths = {unicodedata.normalize("NFC", name): name for name in self.names}
        self._called: dict[str, list[str]] = {}
        for path, name in self._paths.items():
            whole = PurePosixPath(path)
            for key in {whole.name, whole.stem, posixpath.splitext(path)[0]}:
                self._called.setdefault(key, []).append(name)

    def _walk(self, folder: str) -> Iterator[str]:
        try:
            with os.scandir(self.root / folder) as found:
                entries = list(found)
        except OSError as error:
            if not folder:
                raise UserError(f"the folder {self.root} cannot be read ({error.strerror})") from None
            self.remarks.append(f"the folder {self.root / folder} cannot be read ({error.strerror})")
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = posixpath.join(folder, entry.name)
            media = posixpath.splitext(entry.name)[1].lower() in self._suffixes
            if entry.is_symlink():
                if media or entry.is_dir():
                    self._links.append(name)
            elif entry.is_dir():
                yield from self._walk(name)
            elif media and entry.is_file():
                try:
                    name.encode()
                except UnicodeEncodeError:
                    self._unnamed += 1
                else:
                    yield name

    def locate(self, names: Sequence[str]) -> str:
        """The file that the first of these names means: its path here, its name, or either without the suffix.

        Of a video and a sound of one name, it is the video.

        Raises:
            LookupError: there is no such file, or there are several.
        """
        for name in names:
            key = posixpath.normpath(unicodedata.normalize("NFC", name))
            key = key.removeprefix(f"{self.root}/")
            if key in self._paths:
                return self._paths[key]
            found = self._called.get(key, [])
            videos = [path for path in found if posixpath.splitext(path)[1].lower() in VIDEO]
            if len(videos) == 1:
                return videos[0]
            if len(found) == 1:
                return found[0]
            if found:
                raise LookupError(f"{name} may be {found[0]} or {found[1]}; name it by its path")
        raise LookupError(f"there is no {names[0]} in {self.root}" if names else "the row names no file")

    def beside(self, name: str) -> str | None:
        """What the .txt file of the same stem beside a media file says; None if there is none.

        Raises:
            ValueError: it is there and is no text in UTF-8.
        """
        path = (self.root / name).with_suffix(".txt")
        if path.is_symlink() or not path.is_file():
            return None
        try:
            return path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ValueError(f"{path.name} beside it cannot be read ({error.strerror})") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path.name} beside it is no text in UTF-8 ({error}); {SAVE_AS_UTF_8}") from None
