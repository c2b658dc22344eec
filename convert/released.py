"""The released files: where each is published, its hash, what it becomes, and the terms that it comes with."""

import dataclasses

LICENCE = "CC-BY-NC-4.0"
OTHERS = "its publisher's terms"
NOTICE = """\
The released weights are licensed CC-BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/): no commercial use.
BigVGAN-v2 (huggingface.co/nvidia/bigvgan_v2_44khz_128band_512x) and CLIP (huggingface.co/apple/DFN5B-CLIP-ViT-H-14-384)
come with their publishers' own terms besides."""

MMAUDIO = "https://huggingface.co/hkchengrex/MMAudio/resolve/main/weights/"
RELEASE = "https://github.com/hkchengrex/MMAudio/releases/download/v0.1/"
BIGVGAN = "https://huggingface.co/nvidia/bigvgan_v2_44khz_128band_512x/resolve/main/"
CLIP = "https://huggingface.co/apple/DFN5B-CLIP-ViT-H-14-384/resolve/main/"


@dataclasses.dataclass(frozen=True)
class File:
    """A published file.

    Attributes:
        folder: of the weights folder that it becomes.
        sources: addresses, in the order to try.
        gigabytes: its size, about.
        md5: of the file as published, where that is known.
        beside: addresses of small files that belong to it.
        licence: of what it becomes.
    """

    folder: str
    sources: tuple[str, ...]
    gigabytes: float
    md5: str | None
    beside: tuple[str, ...] = ()
    licence: str = LICENCE

    @property
    def name(self) -> str:
        """Its published name."""
        return self.sources[0].rpartition("/")[2]


FILES = (
    File("small_16k", (MMAUDIO + "mmaudio_small_16k.pth",), 0.63, "af93cde404179f58e3919ac085b8033b"),
    File("small_44k", (MMAUDIO + "mmaudio_small_44k.pth",), 0.63, "babd74c884783d13701ea2820a5f5b6d"),
    File("medium_44k", (MMAUDIO + "mmaudio_medium_44k.pth",), 2.49, "5a56b6665e45a1e65ada534defa903d0"),
    File("large_44k", (MMAUDIO + "mmaudio_large_44k.pth",), 4.12, "fed96c325a6785b85ce75ae1aafd2673"),
    File("large_44k_v2", (MMAUDIO + "mmaudio_large_44k_v2.pth",), 4.12, "01ad4464f049b2d7efdaa4c1a59b8dfe"),
    File("vae_16k", (RELEASE + "v1-16.pth",), 0.69, "69f56803f59a549a1a507c93859fd4d7"),
    File("vae_44k", (RELEASE + "v1-44.pth",), 1.22, "fab020275fa44c6589820ce025191600"),
    File("bigvgan_16k", (RELEASE + "best_netG.pt",), 0.45, "eeaf372a38a9c31c362120aba2dde292"),
    File("bigvgan_44k", (BIGVGAN + "bigvgan_generator.pt",), 0.49, None, (BIGVGAN + "config.json",), OTHERS),
    File("synchformer", (RELEASE + "synchformer_state_dict.pth",), 0.95, "5b2f5594b0730f70e41e549b7c94390c"),
    File(
        "clip",
        (CLIP + "open_clip_pytorch_model.bin", CLIP + "open_clip_model.safetensors"),
        3.95,
        None,
        licence=OTHERS,
    ),
)
BY_FOLDER = {file.folder: file for file in FILES}
MD5 = {file.md5: file.name for file in FILES if file.md5}

# a flow network and the folders that it needs to generate and to extract features
MODELS = {
    file.folder: (file.folder, f"vae_{mode}", f"bigvgan_{mode}", "synchformer", "clip")
    for file in FILES
    for mode in ("16k", "44k")
    if f"_{mode}" in file.folder and not file.folder.startswith(("vae", "bigvgan"))
}
