"""The card of a bundle: README.md, for people who put it on a device."""

from collections.abc import Mapping, Sequence
from typing import Any

from todm.device.audio import SAMPLE_RATE
from todm.device.bundle import Bundle, best_int8, graph_files
from todm.export.calibration import Calibration
from todm.export.decoding import chunk_table, threshold_line
from todm.files import markdown_table

_ROW = "| {precision} | {megabytes:.2f} | {p50:.2f} | {p95:.2f} | {rtf:.4f} | {speed:.2f} | {snr} |"

_CARD = """\
# Speech recogniser, {chunk_ms} ms chunks

A streaming transducer with an MH-SSM encoder, exported by todm. 16 kHz mono audio in, text out.

| precision | MB | ms a chunk, p50 | p95 | real-time factor | times as fast | encoder SNR, dB |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

{compressed}MB is encoder + decoder + joiner (10^6 bytes). Times are of one stream on one thread of the
machine that made the bundle. {choice}

- **Latency**: a chunk is {chunk_ms} ms of audio and is decoded when it is complete.
- **Tail**: feed **{tail} s of silence** after the speech, or the last words are lost: an
  incomplete chunk is never decoded, and symbols may come after their sound. {offline_tail}
- **Batches**: in int8 a stream's result depends slightly on the other streams of its batch; decode
  one at a time.
{endpoint}{threshold}\
- **Search**: greedy, or modified beam search (hotwords with `modeling-unit=bpe` and bpe.vocab).

{chunk_sizes}## Run it
```
todm transcribe BUNDLE a.wav b.flac            # no torch; --precision int8, --offline, --format json
```
{runtime}
## Check it
`test_wavs/0.wav`, which has its tail already, must give: "{text}"{reference}
All tokens, timestamps and log-probabilities, per precision, are in `test_wavs/expected.json`.

## Verified when it was made
Largest differences:

{checks}
{provenance}"""

_PROVENANCE = """
## What it learnt from
With the licences as they were found; "not stated" is none.

{table}
"""

_REPLAY = 0.5  # seconds that the next stream hears again, no more than the pause
_FORMS = {
    "int8": "`encoder.int8.onnx` is for ARM and for x86 with VNNI.",
    "int8.rr": (
        "**`encoder.int8.rr.onnx` is for any other x86** (most AMD before Zen 4), where sums of the\n"
        "first overflow; `todm transcribe --precision int8` and `--precision auto` of the runner in\n"
        "export/sherpa_onnx choose between the two automatically."
    ),
    "int8.block": (
        "`encoder.int8.block.onnx` has a scale for every 32 weights: the least noise, slower than int8;\n"
        "for runtimes of 2025 or newer."
    ),
    "int4": "`encoder.int4.onnx` has the fewest bytes: slower than int8 where chunks are long.",
}

_SHERPA = """\
In any sherpa-onnx (1.10 or newer), nothing else installed, from inside this directory:
```
sherpa-onnx --tokens=tokens.txt --encoder={encoder} \\
  --decoder={decoder} --joiner={joiner} test_wavs/0.wav
sherpa-onnx-offline --tokens=tokens.txt --encoder=offline/{encoder} \\
  --decoder={decoder} --joiner={joiner} test_wavs/0.wav
```
(The first adds its own tail, 0.3 s in some versions, which is too short unless the file has one.)
```python
import numpy as np, sherpa_onnx, soundfile
recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
    tokens="tokens.txt", encoder="{encoder}", decoder="{decoder}", joiner="{joiner}", num_threads=1)
samples, rate = soundfile.read("test_wavs/0.wav", dtype="float32")
stream = recognizer.create_stream()
stream.accept_waveform(rate, samples)
stream.accept_waveform(rate, np.zeros(int({tail} * rate), np.float32))  # the tail
stream.input_finished()
while recognizer.is_ready(stream):
    recognizer.decode_stream(stream)
print(recognizer.get_result(stream))
```
A microphone, for hours: begin **a new stream at every endpoint**. sherpa-onnx's own `reset` keeps the last
words as the decoder's context and the encoder's states as they are, and may miss a command that is repeated.
```python
recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
    tokens="tokens.txt", encoder="{encoder}", decoder="{decoder}", joiner="{joiner}", num_threads=1,
    enable_endpoint_detection=True, rule1_min_trailing_silence=2.4,
    rule2_min_trailing_silence={pause:g}, rule3_min_utterance_length=1e9)
stream, last = recognizer.create_stream(), np.zeros(0, np.float32)
for samples in microphone:                     # yours: 100 ms each, float32 at 16 kHz
    last = np.concatenate([last, samples])[-{replay}:]
    stream.accept_waveform(16000, samples)
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
    if recognizer.is_endpoint(stream):
        if text := recognizer.get_result(stream):
            print(text)
        stream = recognizer.create_stream()
        stream.accept_waveform(16000, last)    # heard again: a word may have begun
```
"""

_WEB = """\
This directory is a web page too. Any static server will do; except on localhost, it has to use https:
```
python3 -m http.server 8000                    # then open http://localhost:8000
node page/run.mjs . test_wavs/0.wav            # the same modules without a browser
```
"""


def card(
    bundle: Bundle,
    figures: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    reference: str | None,
    calibration: Calibration | None = None,
) -> str:
    """The text of a bundle's README.md.

    Args:
        bundle: the bundle, its files written.
        figures: `checks`, `runtime`, `bytes` and `chunk_sizes`, as they go into the manifest.
        expected: the transcript of the test recording by each precision.
        reference: the correct transcript, if known.
        calibration: of the threshold of confidence, if it has one.
    """
    best = best_int8(bundle) if "int8" in figures["runtime"] else "fp32"
    offline, target = bundle.has_offline(), bundle.info["target"]
    pause = bundle.pause_seconds
    how = {"sherpa-onnx": _SHERPA, "web": _WEB}.get(target, "")
    return _CARD.format(
        chunk_ms=round(1000 * bundle.info["chunk_seconds"]),
        rows="\n".join(_rows(figures)),
        choice=_choice(figures),
        chunk_sizes=chunk_table(figures["chunk_sizes"], round(25 * bundle.info["chunk_seconds"])),
        compressed=_compressed(bundle.info.get("compressed") or {}),
        tail=bundle.tail_seconds,
        endpoint=endpoint(bundle.endpoint_seconds),
        threshold=threshold_line(calibration),
        offline_tail="The offline encoder adds the tail itself." if offline else "",
        runtime=how.format(
            tail=bundle.tail_seconds,
            pause=pause,
            replay=round(SAMPLE_RATE * min(_REPLAY, pause)),
            **graph_files(best),
        ),
        text=expected["fp32"]["streaming"]["text"],
        reference=f" (reference: {reference!r})" if reference is not None else "",
        checks="\n".join(f"- {name}: {value:.2g}" for name, value in figures["checks"].items()),
        provenance=provenance(bundle.info.get("provenance", [])),
    )


def provenance(sources: Sequence[Mapping[str, str]]) -> str:
    """The section on engines, voices, noise, rooms and speech corpora; empty if they are not known."""
    if not sources:
        return ""
    names = ("kind", "name", "licence", "detail")
    heads = ("what", *names[1:])
    return _PROVENANCE.format(
        table=markdown_table(heads, [[source[name] for name in names] for source in sources])
    )


def endpoint(seconds: float | None) -> str:
    """The line of a card on pauses, which bundles of earlier versions do not have."""
    if seconds is None:
        return ""
    return (
        f"- **Endpoint**: after {seconds:g} s without a symbol a segment ends, and the decoder's context\n"
        "  starts again as in a new stream; the encoder's states go on.\n"
    )


def _rows(figures: Mapping[str, Any]) -> list[str]:
    rows = []
    for precision, timing in figures["runtime"].items():
        names = graph_files(precision).values()
        snr = figures["checks"].get(f"{precision} encoder, signal-to-noise in dB")
        rows.append(
            _ROW.format(
                precision=precision,
                megabytes=sum(figures["bytes"][name] for name in names) / 1e6,
                p50=timing["p50_ms"],
                p95=timing["p95_ms"],
                rtf=timing["rtf"],
                speed=_speed(figures, precision),
                snr="" if snr is None else f"{snr:.1f}",
            )
        )
    return rows


def _compressed(layers: Mapping[str, int]) -> str:
    """The compressed layers in the graphs, if any."""
    if not layers:
        return ""
    lines = "".join(f"- {num} layers: {words}\n" for words, num in layers.items())
    return (
        f"**Compressed**: the graphs named fp32 have these layers; the rest is float32.\n{lines}\n"
    )


def _speed(figures: Mapping[str, Any], precision: str) -> float:
    """The speed relative to fp32."""
    runtime = figures["runtime"]
    return runtime["fp32"]["rtf"] / runtime[precision]["rtf"]


def _choice(figures: Mapping[str, Any]) -> str:
    """The purpose of each form, and the forms that are not faster than fp32 on this machine."""
    forms = figures["runtime"]
    words = [text for name, text in _FORMS.items() if name in forms]
    if len(forms) > 1:
        words.append("SNR and speed are against fp32, measured on that machine.")
    if slower := [name for name in forms if name != "fp32" and _speed(figures, name) < 1]:
        words.append(f"**Not faster than fp32 there: {', '.join(slower)}**; they only save bytes.")
    return "\n".join(words)
