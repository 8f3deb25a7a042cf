// Upload and record: a file or the microphone becomes bytes, sent to the kernel in parts that it confirms one by one.
// Nothing is sent anywhere else; a recording is decoded here and sent as a 16-bit WAV, so the kernel needs no codec for it.

const PART = 1 << 20; // bytes a message: below every server's limit for one message

function wavBytes(samples, rate) {
  const bytes = new ArrayBuffer(44 + 2 * samples.length);
  const view = new DataView(bytes);
  const text = (at, word) => [...word].forEach((letter, n) => view.setUint8(at + n, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // one channel
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, n) => view.setInt16(44 + 2 * n, Math.max(-1, Math.min(1, value)) * 32767, true));
  return bytes;
}

async function decodeRecording(blob) {
  const context = new AudioContext();
  try {
    const sound = await context.decodeAudioData(await blob.arrayBuffer());
    const mixed = new Float32Array(sound.length);
    for (let channel = 0; channel < sound.numberOfChannels; channel++)
      sound.getChannelData(channel).forEach((value, n) => (mixed[n] += value / sound.numberOfChannels));
    return wavBytes(mixed, sound.sampleRate);
  } finally {
    await context.close();
  }
}

function build(el) {
  el.classList.add("voice-recorder");
  el.innerHTML = `
    <div class="voice-buttons">
      <label class="voice-button">Choose a file<input type="file" accept="audio/*,video/*"></label>
      <button type="button" class="voice-button voice-record" aria-pressed="false">Record</button>
      <meter min="0" max="1" value="0" aria-label="Level of the microphone" hidden></meter>
    </div>
    <audio controls hidden aria-label="What was heard"></audio>
    <p role="status" aria-live="polite">Choose a recording, or speak for a few seconds.</p>`;
  const [input, button, meter, audio, status] = ["input", "button", "meter", "audio", "p"].map((tag) => el.querySelector(tag));
  return { input, button, meter, audio, status };
}

function render({ model, el }) {
  const page = build(el);
  const say = (text) => (page.status.textContent = text);
  let number = 0;
  let waiting = null; // resolves when the kernel has confirmed the part on its way
  let recording = null;
  let address = null;

  model.on("msg:custom", (message) => {
    if (message.kind === "got" && message.number === number && waiting) waiting();
    if (message.kind === "say") say(message.text);
  });

  async function send(name, bytes) {
    const mine = ++number;
    for (let start = 0; start === 0 || start < bytes.byteLength; start += PART) {
      const part = bytes.slice(start, start + PART);
      const last = start + PART >= bytes.byteLength;
      const confirmed = new Promise((resolve) => (waiting = resolve));
      model.send({ kind: "part", number: mine, name, first: start === 0, last }, undefined, [part]);
      say(last ? `Listening to ${name} …` : `Handing over ${name}: ${Math.round((100 * start) / bytes.byteLength)} %`);
      await confirmed;
      if (mine !== number) return; // another one was chosen meanwhile
    }
  }

  function offerPlayback(blob) {
    if (address) URL.revokeObjectURL(address);
    address = URL.createObjectURL(blob);
    page.audio.src = address;
    page.audio.hidden = false;
  }

  async function startRecording() {
    const wanted = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    const stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    const recorder = new MediaRecorder(stream);
    const parts = [];
    const context = new AudioContext();
    const analyser = context.createAnalyser();
    context.createMediaStreamSource(stream).connect(analyser);
    const began = performance.now();
    const samples = new Float32Array(analyser.fftSize);
    const timer = setInterval(() => {
      analyser.getFloatTimeDomainData(samples);
      page.meter.value = Math.max(...samples.map(Math.abs));
      const seconds = (performance.now() - began) / 1000;
      say(`Recording: ${seconds.toFixed(1)} s`);
      if (seconds >= model.get("longest_s")) recorder.stop();
    }, 100);
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onstop = async () => {
      clearInterval(timer);
      stream.getTracks().forEach((track) => track.stop());
      await context.close();
      recording = null;
      showRecording(false);
      const blob = new Blob(parts, { type: recorder.mimeType });
      offerPlayback(blob);
      await decodeRecording(blob).then((bytes) => send("recording.wav", bytes)).catch((error) => say(`The recording cannot be read: ${error.message}`));
    };
    recorder.start();
    recording = recorder;
    showRecording(true);
  }

  function showRecording(on) {
    page.button.textContent = on ? "Stop" : "Record";
    page.button.setAttribute("aria-pressed", String(on));
    page.meter.hidden = !on;
    page.input.disabled = on;
  }

  page.input.addEventListener("change", async () => {
    const file = page.input.files[0];
    if (!file) return;
    offerPlayback(file);
    await file.arrayBuffer().then((bytes) => send(file.name, bytes)).catch((error) => say(`The file cannot be read: ${error.message}`));
    page.input.value = "";
  });

  page.button.addEventListener("click", () => {
    if (recording) return recording.stop();
    if (!navigator.mediaDevices) return say("This browser gives the microphone only to pages of this computer (localhost) or over https.");
    startRecording().catch((error) => say(`No microphone: ${error.message}`));
  });

  return () => {
    if (recording) recording.stop();
    if (address) URL.revokeObjectURL(address);
  };
}

export default { render };
