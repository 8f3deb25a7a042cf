"""Ask model.onnx about a mono 16 kHz recording, without torch: python example.py recording.wav
It answers whatever it hears: silence, music, speech of any quality. `lib.predict` first looks for speech and can say "unsure"."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile

about = json.loads(Path("model.onnx.json").read_text(encoding="utf-8"))
waveform, rate_hz = soundfile.read(sys.argv[1], dtype="float32")
assert (waveform.ndim, rate_hz) == (1, 16_000), "resample to one channel at 16 kHz first"
size, step = about["input"]["shape"][1], round(about["windowing"]["step_s"] * 16_000)
waveform = waveform if len(waveform) >= size else np.resize(waveform, size)  # a short recording is repeated
windows = np.stack([waveform[start : start + size] for start in range(0, len(waveform) - size + 1, step)])
answers = onnxruntime.InferenceSession("model.onnx").run(about["outputs"], {"waveforms": windows})
for name, values in zip(about["outputs"], answers):
    head, mean = about["heads"][name.removesuffix(":years")], values.mean(axis=0)
    if name.endswith(":years"):
        print(name, {"years": round(float(mean[0]), 1), "give or take": head["years"]["margin"]})
    else:
        print(name, dict(zip(head["classes"], mean.round(4).tolist())))
