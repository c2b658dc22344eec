"""`make demo`: the whole way on two cores and without weights, each step by the command that a user types."""

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from mmaudio_jax import errors
from mmaudio_jax.demo.networks import save_random_weights
from mmaudio_jax.demo.render import render_clips
from mmaudio_jax.errors import UserError

CLIPS = 6
BEFORE = """\
This demo renders {count} short videos with sound and takes them the whole way: features, LoRA, sound.
Its networks have the architecture of the released ones, but they are small and their weights are RANDOM:
everything works and nothing sounds. What you hear at the end is noise.
"""
AFTER = """\
The demo took {minutes:.1f} minutes. Look at {out}/sounds: a WAV, the video with the new sound, and a spectrogram.
It is noise, since the weights are random. With the released weights these commands make real sound:
  python -m convert mmaudio_small_16k.pth v1-16.pth best_netG.pt synchformer_state_dict.pth \\
      open_clip_pytorch_model.bin --out weights
  python -m mmaudio_jax.features --clips clips.tsv --root videos --weights weights --out data/mine
  python train.py --config configs/lora_16k.py --workdir runs/mine --config.data=data/mine
  python sample.py --weights weights --adapter runs/mine --video a.mp4 --prompt "footsteps on gravel" --out out
"""


def run(*command: str) -> None:
    """Shows a command and runs it with this interpreter."""
    print(f"\n$ python {shlex.join(command)}", flush=True)
    if subprocess.run([sys.executable, *command]).returncode:
        raise UserError("the demo stopped: the command above failed")


@errors.main
def main() -> None:
    """Renders, extracts, trains and samples into --out."""
    parser = argparse.ArgumentParser(prog="python -m mmaudio_jax.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder of everything that the demo makes")
    out = parser.parse_args().out
    start = time.monotonic()
    print(BEFORE.format(count=CLIPS))
    for part in ("clips", "weights", "features", "run", "sounds"):
        shutil.rmtree(out / part, ignore_errors=True)

    print(f"rendering {CLIPS} videos and making random networks …", flush=True)
    clips = render_clips(out / "clips", CLIPS, seed=0)
    save_random_weights(out / "weights", seed=0)
    weights, features, adapter = str(out / "weights"), str(out / "features"), str(out / "run")
    run(
        *("-m", "mmaudio_jax.features", "--clips", str(clips), "--root", str(clips.parent)),
        *("--weights", weights, "--out", features),
    )
    run(
        *("train.py", "--config", "configs/demo.py", "--workdir", adapter),
        *(f"--config.weights={weights}", f"--config.data={features}"),
    )
    video = next(clips.parent.glob("*.mp4"))
    run(
        *("sample.py", "--weights", weights, "--adapter", adapter, "--video", str(video)),
        *("--prompt", "a ball bounces", "--out", str(out / "sounds")),
    )
    print("\n" + AFTER.format(minutes=(time.monotonic() - start) / 60, out=out))


if __name__ == "__main__":
    main()
