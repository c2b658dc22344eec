"""LoRA on small_16k without sounds on the way, which tests of the command need not wait for."""

from ml_collections import ConfigDict

from configs import lora_16k


def get_config() -> ConfigDict:
    config = lora_16k.get_config()
    config.samples = None
    return config
