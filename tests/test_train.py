"""The command line of train.py: what is wrong with it is one sentence."""

import subprocess
import sys

import pytest
from small_run import ROOT

GOOD = "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'data': 'x'})\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.py", None, "there is no config file {path}"),
        (None, None, "--config must be given: a file of configs/"),
        ("empty.py", "", "{path} is no config file: it has no function get_config"),
        ("one.py", "def get_config():\n    return 1\n", "get_config() of {path} gives 1, which is no ConfigDict"),
        ("import.py", "import nosuch\n", "{path} is no config file (ModuleNotFoundError: No module named 'nosuch')"),
        ("words.py", "two words\n", "{path} is no config file (SyntaxError: invalid syntax (words.py, line 1))"),
        ("good.py:large", GOOD, "this config file comes in one size; leave out what follows the colon"),
        ("good.py", GOOD, "no such config key: date (did you mean data?); the file of --config lists them"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_sentence(name, content, message, tmp_path):
    path = tmp_path / name.partition(":")[0] if name else None
    if content is not None:
        path.write_text(content)
    given = ["--config", str(tmp_path / name)] if name else []
    for more in ([], ["--config.date=y"]):
        if name == "good.py" and not more:
            continue
        command = [sys.executable, "train.py", *given, "--workdir", str(tmp_path / "run"), *more]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, f"error: {message.format(path=path)}\n")
    assert not (tmp_path / "run").exists()


def test_the_help_needs_no_config():
    done = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert "--workdir" in done.stdout and "error" not in done.stdout + done.stderr
