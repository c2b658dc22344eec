"""How a generated sound compares with the true one, in numbers that need no trained network."""

import numpy as np
from jaxtyping import Float

from mmaudio_jax.data import mel

TOLERANCE = 0.05  # seconds that an onset may be off
SILENT_DB = -60.0  # below full scale
FULL_SCALE = 0.999  # a value at or beyond it counts as clipped

Wave = Float[np.ndarray, " l"]


def compare(generated: Wave, true: Wave, config: mel.MelConfig) -> dict[str, float]:
    """All measures of a pair of equally long sounds, at the rate of the config's mode: a whole number of its hops."""
    return {
        "log_mel_distance": log_mel_distance(generated, true, config),
        "onset_f1": onset_f1(generated, true, config),
        "silence": silence(generated, config.mode.hop),
        "clipping": float(np.mean(np.abs(generated) >= FULL_SCALE)),
    }


def log_mel_distance(generated: Wave, true: Wave, config: mel.MelConfig) -> float:
    """Mean absolute difference of the log mel spectrograms in dB."""
    one, two = (np.asarray(mel.decibels(np.asarray(wave[None], np.float32), config)) for wave in (generated, true))
    return float(np.mean(np.abs(one - two)))


def onset_f1(generated: Wave, true: Wave, config: mel.MelConfig) -> float:
    """F1 of the onsets of one sound against those of the other, within ±50 ms (mir_eval); 1 if neither has any."""
    import mir_eval

    heard, expected = (onsets(wave, config.mode.sample_rate, config.mode.hop) for wave in (generated, true))
    if not len(heard) or not len(expected):
        return float(len(heard) == len(expected))
    return float(mir_eval.onset.f_measure(expected, heard, window=TOLERANCE)[0])


def onsets(audio: Wave, rate: int, hop: int) -> Float[np.ndarray, " k"]:
    """Seconds at which something begins to sound: librosa's peaks of the rise of the mel spectrogram in dB.

    What lies 60 dB and more below the loudest is not heard; else each ripple of a faint hiss would count.
    """
    import librosa

    power = librosa.feature.melspectrogram(y=audio, sr=rate, hop_length=hop)
    level = librosa.power_to_db(power, ref=np.max, amin=1e-10, top_db=-SILENT_DB)
    strength = librosa.onset.onset_strength(S=level, sr=rate, hop_length=hop)
    return librosa.onset.onset_detect(onset_envelope=strength, sr=rate, hop_length=hop, units="time")


def silence(audio: Wave, hop: int) -> float:
    """Share of the frames, one a hop, whose root mean square lies below −60 dB of full scale."""
    frames = audio[: len(audio) // hop * hop].reshape(-1, hop)
    return float(np.mean(np.sqrt(np.mean(np.square(frames), axis=1)) < 10 ** (SILENT_DB / 20)))
