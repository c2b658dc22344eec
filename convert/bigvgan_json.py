"""The config.json that BigVGAN's files are published with: it must say what the tensors say."""

import json
from pathlib import Path
from typing import Any

from mmaudio_jax.errors import UserError
from mmaudio_jax.models.bigvgan import BigVGANConfig


def expected(config: BigVGANConfig) -> dict[str, Any]:
    """The settings of config.json that decide what the network computes."""
    return {
        "resblock": "1",
        "num_mels": config.mel_bins,
        "upsample_rates": list(config.upsample_rates),
        "upsample_kernel_sizes": [2 * rate for rate in config.upsample_rates],
        "upsample_initial_channel": config.channels,
        "resblock_kernel_sizes": list(config.kernel_sizes),
        "resblock_dilation_sizes": [list(config.dilations)] * len(config.kernel_sizes),
        "activation": "snakebeta",
        "snake_logscale": True,
        "use_tanh_at_final": not config.v2,
        "use_bias_at_final": not config.v2,
    }


def check_beside(checkpoint: Path, config: BigVGANConfig) -> None:
    """Compares with the config.json that lies beside a checkpoint, where there is one of a BigVGAN.

    Raises:
        UserError: it cannot be read, or differs (names every key).
    """
    path = checkpoint.parent / "config.json"
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it or bring it again") from None
    if not isinstance(found, dict) or "upsample_rates" not in found:  # of something else
        return
    wrong = [
        f"{key} is {found[key]!r}, the tensors need {value!r}"
        for key, value in expected(config).items()
        if key in found and found[key] != value
    ]
    if wrong:
        raise UserError("\n  ".join([f"{path} does not fit {checkpoint.name}:", *wrong]))
