"""The released files, and the terms that they come with."""

MD5 = {  # of the files as published
    "af93cde404179f58e3919ac085b8033b": "mmaudio_small_16k.pth",
    "babd74c884783d13701ea2820a5f5b6d": "mmaudio_small_44k.pth",
    "5a56b6665e45a1e65ada534defa903d0": "mmaudio_medium_44k.pth",
    "fed96c325a6785b85ce75ae1aafd2673": "mmaudio_large_44k.pth",
    "01ad4464f049b2d7efdaa4c1a59b8dfe": "mmaudio_large_44k_v2.pth",
    "69f56803f59a549a1a507c93859fd4d7": "v1-16.pth",
    "fab020275fa44c6589820ce025191600": "v1-44.pth",
    "eeaf372a38a9c31c362120aba2dde292": "best_netG.pt",
    "5b2f5594b0730f70e41e549b7c94390c": "synchformer_state_dict.pth",
}

LICENCE = "CC-BY-NC-4.0"
NOTICE = """\
The released weights are licensed CC-BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/): no commercial use.
BigVGAN-v2 (huggingface.co/nvidia/bigvgan_v2_44khz_128band_512x) and CLIP (huggingface.co/apple/DFN5B-CLIP-ViT-H-14-384)
come with their publishers' own terms besides."""
