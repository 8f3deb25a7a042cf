"""Ask model.onnx about a mono 16 kHz recording, without torch: python example.py recording.wav

It answers whatever it hears: silence, music, speech of any quality. `lib.predict` first looks for speech and can say "unsure".
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile

about = json.loads(Path("model.onnx.json").read_text())
waveform, rate_hz = soundfile.read(sys.argv[1], dtype="float32")
assert (waveform.ndim, rate_hz) == (1, 16_000), "resample to one channel at 16 kHz first"
size, step = about["input"]["shape"][1], round(about["windowing"]["step_s"] * 16_000)
waveform = waveform if len(waveform) >= size else np.resize(waveform, size)  # a short recording is repeated
windows = np.stack([waveform[start : start + size] for start in range(0, len(waveform) - size + 1, step)])
answers = onnxruntime.InferenceSession("model.onnx").run(None, {"waveforms": windows})
for (task, classes), windows_said in zip(about["outputs"].items(), answers):
    print(task, dict(zip(classes, windows_said.mean(axis=0).round(4).tolist())))
for task, windows_said in zip(about["years"], answers[len(about["outputs"]) :]):
    print(
        f"{task}:years", {"years": round(float(windows_said.mean()), 1), "give or take": about["years"][task]["margin"]}
    )
