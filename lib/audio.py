"""Decoding: any audio file, at once or in blocks, to a mono float32 waveform at 16 kHz. FFmpeg's libraries (PyAV) decode, libsndfile
what they do not know, soxr resamples. No header's count is believed, but what it promises in vain becomes a warning."""

import contextlib
import io
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

from lib.paths import printable

RATE_HZ = 16_000  # what every encoder here was trained on
BLOCK_S = 20.0  # decoded at a time, counted from the start of the file, so that a cut is a slice of the whole
SHORTFALL_S = 0.06  # promised sound that does not come is told from here; codecs pad by less
# other lengths are guessed from a bit rate
COUNTED = ["aiff", "ape", "ast", "au", "flac", "flv", "matroska", "mov", "nistsphere", "tta", "wv"]
COUNTS_MP3 = (b"Xing\0\0\0", b"Info\0\0\0", b"VBRI")
EVEN = {"mp1", "mp2", "mp3", "ac3", "eac3", "dts"}  # codecs whose pieces are of one size, unless the rate varies
CHUNKS = {  # by a file's first bytes: where its chunks begin, bytes of an id, of a size, their order, both counted?, padding
    b"RIFF": (0, 4, 4, "little", False, 2), b"FORM": (0, 4, 4, "big", False, 2), b"riff": (0, 16, 8, "little", True, 8),
    b"0&\xb2u": (0, 16, 8, "little", True, 1), b"caff": (8, 4, 8, "big", False, 1),  # wma; Apple's caf
}  # fmt: skip
MARKS = {b"OggS": 6, b"\x06\x0e\x2b\x34": 14}  # where each page or pack begins alike: bytes that tell a file's first
MISTAKEN = [("wav", "g726"), ("au", "g726le"), ("wav", "amrnb"), ("caf", "alac"), ("aiff", "gsm")]  # by FFmpeg alone
COUNTS_LESS = "its header counts less sound than the file holds; all of it is heard"
JOINED = "other files were joined to its end; all are heard"
LOST = "another file was joined to its end, which cannot be decoded"
NO_END = "its end is missing, it does not tell how much"
UPSIDE_DOWN = "a channel is upside down; it was turned before the channels were averaged"

Blocks = Iterator[tuple[np.ndarray, int]]  # samples [n, C] in their own type, at their own rate in Hz


class UnreadableAudio(ValueError):
    """A file that is empty, missing or no audio; the message names it and why."""


class Recording:
    """A recording as blocks (samples,): mono, float32, 16 kHz, nominally in [-1, 1], decoded while one iterates.
    source: path of any audio file or video; or samples of shape (samples,), or of two axes, the shorter one for channels.
    rate_hz: of samples, None for a file. ValueError when the two make no waveform.
    start_s, end_s: a cut, seconds; None or NaN = to the end. It equals the slice of the whole, to the sample.
    Iterating raises UnreadableAudio and counts `samples`; then `warnings` tells what is missing, damaged, or differs by channel."""

    def __init__(self, source: Path | str | np.ndarray, rate_hz: int | None = None, start_s=0.0, end_s=None):
        if rate_hz is not None:
            source = np.asarray(source)
            if source.dtype.kind not in "fiu" or source.ndim not in (1, 2) or not 0 < rate_hz == int(rate_hz):
                raise ValueError(f"samples of type {source.dtype}, shape {source.shape}, {rate_hz} Hz: not a waveform")
            source = source[:, None] if source.ndim == 1 else source
            source = source.T if 0 < source.shape[0] < source.shape[1] else source
        self.source, self.rate_hz, self.start_s = source, rate_hz, start_s
        self.end_s = np.inf if end_s is None or np.isnan(end_s) else end_s
        self.warnings, self.samples = [], 0

    def __iter__(self) -> Iterator[np.ndarray]:
        self.warnings.clear()
        if self.rate_hz:
            name, step = "the samples", round(BLOCK_S * self.rate_hz)
            starts = range(0, len(self.source), step)
            native = ((self.source[start : start + step], int(self.rate_hz)) for start in starts)
        else:
            name, native = printable(Path(self.source).name), _file_blocks(self.source, self.warnings)
        first, last, done, self.samples = round(self.start_s * RATE_HZ), np.round(self.end_s * RATE_HZ), 0, 0
        for block in _resample_blocks(_mix_channels(native, name, self.warnings), name):
            part = block[max(0, first - done) : int(np.clip(last - done, 0, len(block)))]
            done, self.samples = done + len(block), self.samples + len(part)
            yield part
            if done >= last:
                return
        if first and done <= first:
            raise UnreadableAudio(f"{name}: cut from {self.start_s:g} s, but the file ends at {done / RATE_HZ:g} s")
        if SHORTFALL_S * RATE_HZ < last - done < np.inf:
            self.warnings.append(f"its cut ends at {self.end_s:g} s, the file at {done / RATE_HZ:.2f} s")


def read_waveform(path: Path | str, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
    """Waveform (samples,) of a file or of a cut of it, as `Recording` gives it; its warnings are left unsaid."""
    return np.concatenate([*Recording(path, None, start_s, end_s), np.zeros(0, np.float32)])


class SoundFile(io.FileIO):
    """A file to read, or what of it begins at byte `begin`, as if that were all of it."""

    begin = 0
    end = 0  # of what was heard, in bytes of the whole file
    is_cut = False  # whether its last piece is not whole

    def seek(self, offset: int, whence: int = 0) -> int:
        with contextlib.suppress(OSError, OverflowError):  # of a place before the first, or beyond all numbers
            super().seek(offset + self.begin * (whence == 0), whence)
        return self.tell()

    def tell(self) -> int:
        return super().tell() - self.begin

    def peek(self, count: int, place: int) -> bytes:
        """So many bytes from `place` on, or fewer at the end; reading goes on where it was."""
        return os.pread(self.fileno(), count, self.begin + place)

    @property
    def size(self) -> int:
        return os.fstat(self.fileno()).st_size - self.begin


def open_sound(path: Path | str) -> SoundFile:
    """Open a file to read. UnreadableAudio says why not: missing, a folder, a pipe, empty, forbidden, a name too long."""
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            # by number: bytes show what a file is, its name does not, and FFmpeg would take "http:x.wav" for an address
            return SoundFile(os.open(path, os.O_RDONLY))
        reason = "empty file (0 bytes)" if stat.S_ISREG(status.st_mode) else "a folder, a pipe or a device, not a file"
    except FileNotFoundError:
        reason = "a link to nothing" if os.path.islink(path) else "no such file"
    except (OSError, ValueError) as error:
        reason = f"cannot be read ({getattr(error, 'strerror', error)})"
    raise UnreadableAudio(f"{printable(Path(path).name)}: {reason}")


def _file_blocks(path: Path | str, warnings: list[str]) -> Blocks:
    """Blocks of a file and of what was joined to its end; what is missing or damaged goes to `warnings`."""
    with open_sound(path) as file:
        yield from _part_blocks(file, printable(Path(path).name), warnings)
        left = 10  # places that may turn out to be none
        for begin in _begin_again(file):
            file.begin, notes = begin, []
            try:
                yield from _part_blocks(file, "", notes)
                notes.append(JOINED)
            except UnreadableAudio:  # where an end is missing the mark may be of a piece
                notes, left = [] if warnings else [LOST], left - 1
            warnings += [note for note in notes if note not in warnings]
            if not left:
                break


def _begin_again(file: SoundFile) -> Iterator[int]:
    """Where the file's first bytes come again, behind the end of all that was heard by then."""
    shift = 4 * (file.peek(3, 0) == bytes(3))  # of MP4 and its like: a size comes first
    mark, place = file.peek(MARKS.get(file.peek(4, 0), 4), shift), 1
    while len(piece := os.pread(file.fileno(), 1 << 20, place := max(place, file.end + shift))) >= len(mark):
        found = piece.find(mark)
        if found >= 0:
            yield place + found - shift
        place += found + 1 if found >= 0 else len(piece) - len(mark) + 1


def _part_blocks(file: SoundFile, name: str, warnings: list[str]) -> Blocks:
    """Blocks by the first decoder that gives any."""
    reasons, done_s = [], 0.0
    for decode in (_ffmpeg_blocks, _libsndfile_blocks):
        file.seek(0)
        warnings.clear()
        try:
            for samples, rate_hz in decode(file, warnings):
                yield samples, rate_hz
                done_s += len(samples) / rate_hz
            reasons.append("decodes to no samples")
        except Exception as error:  # decoders raise whatever they like
            reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
            reasons.append(reason.strip(" ."))
            warnings += [f"breaks off after {done_s:.2f} s ({reason})"] if done_s else []
        if done_s:
            return
    if file.peek(4, 4) == b"ftyp" and reasons[0].startswith("Invalid data"):
        reasons = ["its index, the moov atom, is missing: the file was cut off"]
    raise UnreadableAudio(f"{name}: no audio that can be decoded ({'; '.join(dict.fromkeys(reasons))})")


def _libsndfile_blocks(file: SoundFile, warnings: list[str]) -> Blocks:
    with soundfile.SoundFile(file) as sound:
        while len(samples := sound.read(round(BLOCK_S * sound.samplerate), "float32", always_2d=True)):
            yield samples, sound.samplerate
            file.end = max(file.end, file.begin + file.tell())


def _ffmpeg_blocks(file: SoundFile, warnings: list[str]) -> Blocks:
    """Blocks of the sound that the program ffmpeg would take, each of one rate and number of channels."""
    too_short, seconds = _wav_goes_on(file), 0.0
    options = {"protocol_whitelist": "none", "ignore_length": str(int(too_short))}  # a list leads to no other file
    with av.open(file, metadata_errors="replace", options=options) as container:
        stream = container.streams.best("audio")
        codec = stream.codec_context.name if stream and stream.codec_context else ""
        if not codec or (container.format.name, codec) in MISTAKEN:
            raise ValueError("no sound in it that FFmpeg knows")
        frames = _decode_frames(container.demux(stream), file, warnings)
        # a joined file may change its rate and its channels on the way
        for (rate_hz, _), run in itertools.groupby(frames, lambda frame: (frame.sample_rate, frame.layout.nb_channels)):
            while len(samples := _gather_samples(run, round(BLOCK_S * rate_hz))):
                yield samples, rate_hz
                seconds += len(samples) / rate_hz
        warnings += [COUNTS_LESS] if too_short else _find_missing(container, file, seconds)


def _decode_frames(packets: Iterator[av.Packet], file: SoundFile, warnings: list[str]) -> Iterator[av.AudioFrame]:
    """Frames of a stream; a packet that is damaged is left out and counted, as the program ffmpeg does."""
    damaged, failed, pieces, sizes = 0, False, [], []  # of the pieces the first and the last
    file.is_cut = False
    try:
        for packet in packets:
            if packet.size:
                place = file.size if packet.pos is None else packet.pos + packet.size
                file.end = max(file.end, file.begin + place)
                pieces, failed = [*pieces[:1], packet], False
                sizes.append(packet.size)
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                damaged, failed = damaged + 1, True
        if len(sizes) > 1 and bytes(pieces[0])[:2] == bytes(pieces[1])[:2]:  # else it is a tag, or samples as they are
            codec, before = pieces[0].stream.codec_context.name.removesuffix("float"), sizes[-50:-1]
            file.is_cut = failed or (codec in EVEN and sizes[-1] < min(before) >= max(before) - 2)
    except (av.error.FFmpegError, OSError) as error:
        warnings.append(f"breaks off ({error.strerror})")
    warnings += [f"damaged pieces left out: {damaged}"] if damaged else []


def _gather_samples(frames: Iterator[av.AudioFrame], count: int) -> np.ndarray:
    """The next `count` samples or a few more, [n, C] in the decoder's own type; [0, 1] at the end."""
    parts, size = [], 0
    for frame in frames:
        if frame.format.is_planar and frame.layout.nb_channels > 7:  # PyAV would read a plane that is not there
            frame = av.AudioResampler(frame.format.packed).resample(frame)[0]
        values = frame.to_ndarray()
        parts.append(values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels))
        size += frame.samples
        if size >= count:
            break
    return np.concatenate(parts or [np.zeros((0, 1))])


def _wav_goes_on(file: SoundFile) -> bool:
    """Whether something that is no chunk of a wav follows where its data should end: its header counts too little."""
    head, place = file.peek(12, 0), 12
    while head[:4] == b"RIFF" and head[8:] == b"WAVE" and len(chunk := file.peek(8, place)) == 8:
        size = int.from_bytes(chunk[4:], "little")
        place += 8 + size + size % 2
        if chunk[:4] == b"data":
            behind = [file.peek(4, end).replace(b" ", b"") for end in {place, place - size % 2}]  # some do not pad
            return len(file.peek(4, place)) == 4 and not any(map(bytes.isalnum, behind))
    return False


def _asked_bytes(file: SoundFile) -> int:
    """Where the chunks should end that were heard; 0 where a file has none, or was written without knowing."""
    mark = file.peek(4, 0)
    place, named, sized, order, both, padding = CHUNKS.get(mark, (file.size, 0, 0, "big", True, 1))
    while file.begin + place < file.end and len(head := file.peek(named + sized, place)) == named + sized:
        length = int.from_bytes(head[named:], order) + (0 if both else named + sized)
        if mark in (b"RIFF", b"FORM", b"riff") and head[:4] != mark:  # one chunk around all, which counts too little
            return 0
        if not length or length > min(1000 * file.size, 2 ** (8 * sized - 1) - 256):
            return 0
        place += -(-length // padding) * padding
    return place


def _find_missing(container: av.container.InputContainer, file: SoundFile, done_s: float) -> list[str]:
    """What a header promises beyond the `done_s` that came; FFmpeg's guesses from a bit rate are no promise."""
    kind, stream, promised_s = container.format.name.split(",")[0], container.streams.best("audio"), 0.0
    head, asked = file.peek(1 << 16, 0), _asked_bytes(file)
    if kind == "ogg":
        page = file.peek(1 << 17, max(0, file.size - (1 << 17))).rpartition(b"OggS")[2] + bytes(23)
        is_whole = len(page) >= 46 + page[22] + sum(page[23 : 23 + page[22]])  # by the lengths of its segments
        file.is_cut = not (is_whole and page[1] & 4)
    if asked > file.size:  # FFmpeg may cut its count down to what is there
        promised_s = done_s * asked / file.size
    elif kind in COUNTED or head[:4] == b"RF64" or (kind == "mp3" and any(mark in head for mark in COUNTS_MP3)):
        promised_s = float((stream.duration or 0) * stream.time_base)
        if not promised_s and len(container.streams) == 1:
            promised_s = (container.duration or 0) / av.time_base
    if promised_s > done_s + SHORTFALL_S:
        return [f"only {done_s:.2f} of the {promised_s:.2f} s that its header promises are there"]
    return [NO_END] if file.is_cut else []


def _mix_channels(blocks: Blocks, name: str, warnings: list[str]) -> Blocks:
    """Average channels [n, C] to float32 [n, 1]; one that is upside down is turned first, second by second."""
    loudness: dict[int, list[np.ndarray]] = {}  # number of channels -> their loudness [20-ms frames, C] in each block
    try:
        for samples, rate_hz in blocks:
            if samples.dtype.kind in "iu":  # divided by the largest of their type, unsigned ones shifted first
                full = 2.0 ** (8 * samples.dtype.itemsize - 1)
                samples = (samples - full * (samples.dtype.kind == "u")) / full
            samples = samples.astype(np.float32)
            if not np.isfinite(samples).all():
                raise UnreadableAudio(f"{name}: holds samples that are not numbers (NaN or infinite)")
            if (count := samples.shape[1]) > 1:
                signs, step = _find_signs(samples, rate_hz), max(1, rate_hz // 50)
                warnings += [UPSIDE_DOWN] if signs.min() < 0 and UPSIDE_DOWN not in warnings else []
                pieces = samples[: len(samples) // step * step].reshape(-1, step, count)
                loudness.setdefault(count, []).append(np.sqrt(np.square(pieces).mean(axis=1)))
                turned = samples * np.repeat(signs, min(rate_hz, len(samples)), axis=0)[: len(samples)]
                samples = turned.mean(axis=1, keepdims=True)
            yield samples, rate_hz
    finally:  # at the end of a cut, too
        for frames in (frames for frames in map(np.concatenate, loudness.values()) if len(frames) > 50):
            mean, deviation = frames.mean(axis=0), frames.std(axis=0)
            audible = frames[:, (mean > 0.03 * mean.max()) & (deviation > 0)]  # within 30 dB of the loudest channel
            if audible.shape[1] > 1 and np.corrcoef(audible.T).min() < 0.5:
                warnings.append("its channels are loud at different times, as two people are; their mean is heard")


def _find_signs(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """1, or -1 where a channel is upside down, float32 [seconds, C], of channels [n, C]: where, in a second that is not soft, its
    correlation with the loudest is below -0.5, or -0.8 at a delay of up to 20 ms (a room makes -0.7), nowhere so far above 0."""
    group = max(1, rate_hz // 4000)  # a voice is told at 4 kHz as well
    second = min(rate_hz, len(samples))
    size, seconds = -(-second // group), -(-len(samples) // second)
    padded = np.pad(samples, ((0, seconds * second - len(samples)), (0, 0))).reshape(seconds, second, -1)
    coarse = np.add.reduceat(padded, np.arange(0, second, group), axis=1)  # [seconds, size, C]
    energy = np.square(coarse).sum(axis=1)
    loudest = energy.sum(axis=0).argmax()
    spectrum = np.fft.rfft(coarse, 1 << (2 * size).bit_length(), axis=1)
    cross = np.fft.irfft(spectrum * spectrum[:, :, [loudest]].conj(), axis=1)
    cross /= np.sqrt(energy * energy[:, [loudest]] + 1e-12)[:, None]
    most_delay = rate_hz // group // 50
    near = np.r_[: min(size, most_delay + 1), -min(size, most_delay) : 0]
    least, most = cross[:, near].min(axis=1), cross[:, near].max(axis=1)
    at_once = (cross[:, 0] < -0.5) & (cross[:, 0] < -0.95 * most)  # a steady tone is both
    opposite = at_once | (least < -0.8) & (least < -1.1 * most)
    return np.where(opposite & (energy[:, [loudest]] > 0.01 * energy[:, loudest].max()), -1, 1).astype(np.float32)


def _resample_blocks(blocks: Blocks, name: str) -> Iterator[np.ndarray]:
    """Blocks (samples,) at 16 kHz; soxr gives the same samples however they are divided, and leaves 16 kHz as it is."""
    for rate_hz, run in itertools.groupby(blocks, lambda block: block[1]):
        if rate_hz < 1000:  # a header that says 1 Hz would fill gigabytes
            raise UnreadableAudio(f"{name}: {rate_hz} samples a second hold no voice; 1000 are the least")
        resampler = soxr.ResampleStream(rate_hz, RATE_HZ, 1, dtype="float32")
        for samples, _ in run:
            yield resampler.resample_chunk(samples[:, 0])
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
