import json

import pytest

from convert import bigvgan_json
from mmaudio_jax.errors import UserError
from mmaudio_jax.models.bigvgan import PRESETS

FILES = {"bigvgan_16k": "best_netG.pt", "bigvgan_44k": "bigvgan_generator.pt"}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_published_settings_fit(golden, tmp_path, preset):
    published = golden.manifest(FILES[preset])["config"]
    assert bigvgan_json.expected(PRESETS[preset]).items() >= published.items()
    (tmp_path / "config.json").write_text(json.dumps(published))
    bigvgan_json.check_beside(tmp_path / FILES[preset], PRESETS[preset])
    with pytest.raises(UserError, match=r"config.json does not fit x.pt:\n  num_mels is "):
        other = next(config for name, config in PRESETS.items() if name != preset)
        bigvgan_json.check_beside(tmp_path / "x.pt", other)


@pytest.mark.parametrize("text", ["{", "[]", '{"model": "another"}'])
def test_what_is_no_bigvgan_s(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    if text == "{":
        with pytest.raises(UserError, match="config.json cannot be read"):
            bigvgan_json.check_beside(tmp_path / "x.pt", PRESETS["bigvgan_44k"])
    else:
        bigvgan_json.check_beside(tmp_path / "x.pt", PRESETS["bigvgan_44k"])
