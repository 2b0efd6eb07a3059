"""The web target as a reader has it: its modules in Node, and the whole page in headless Chromium."""

import difflib
import functools
import http.server
import json
import shutil
import subprocess
import threading

import numpy as np
import pytest
import soundfile

from todm.artifact import MANIFEST
from todm.device.audio import read_audio, resample, write_wav
from todm.device.bundle import open_bundle
from todm.device.features import fbank
from todm.device.recognizer import StreamingRecognizer
from todm.device.segments import transcribe_blocks
from todm.errors import BundleError
from todm.export import web

pytestmark = pytest.mark.web

# kaldi-native-fbank computes in float32, the page in double: bins far below a frame's loudest differ.
FEATURE_TOLERANCE = 1e-3


@pytest.fixture
def in_node(node, repo, tmp_path):
    """Runs JavaScript with `samples` (Float32Array) in scope; what it puts in `out` comes back."""
    page = (repo / "todm" / "export" / "page").as_uri()

    def run(samples_S, body):
        samples_S.astype(np.float32).tofile(tmp_path / "in")
        script = f"""
            import {{ readFileSync, writeFileSync }} from "node:fs";
            import {{ fbank, OnlineFeatures }} from "{page}/features.js";
            import {{ join, readWav, Resampler }} from "{page}/audio.js";
            const samples = new Float32Array(Uint8Array.from(readFileSync("in")).buffer);
            let out;
            {body}
            writeFileSync("out", new Uint8Array(out.buffer, out.byteOffset, out.byteLength));
        """
        command = [node, "--input-type=module", "-e", script]
        subprocess.run(command, cwd=tmp_path, check=True)
        return np.fromfile(tmp_path / "out", np.float32)

    return run


def _signal(name, golden_bundle):
    rng = np.random.default_rng(4)
    if name == "speech":
        return read_audio(golden_bundle / "test_wavs" / "0.wav")
    length, level = {
        "odd": (20_011, 0.1),
        "short": (150, 0.1),
        "quiet": (9_999, 1e-4),
        "none": (79, 0.1),
    }[name]
    return (level * rng.standard_normal(length)).astype(np.float32)


@pytest.mark.parametrize("name", ["speech", "odd", "short", "quiet", "none"])
def test_features_equal_the_devices(in_node, golden_bundle, name):
    samples = _signal(name, golden_bundle)
    found = in_node(samples, "out = fbank(samples);").reshape(-1, 80)
    wanted = fbank(samples)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=FEATURE_TOLERANCE)


def test_features_in_pieces_and_overlapping(in_node, golden_bundle):
    samples = _signal("odd", golden_bundle)
    found = in_node(
        samples,
        """
        const online = new OnlineFeatures();
        const taken = [];
        for (let at = 0; at < samples.length; at += 333) online.accept(samples.subarray(at, at + 333));
        online.finish();
        while (online.numReady >= 12) taken.push(online.take(12, 8));
        out = join(taken);
        """,
    ).reshape(-1, 12, 80)
    wanted = fbank(samples)
    assert len(found) > 10
    for number, rows in enumerate(found):
        np.testing.assert_allclose(
            rows, wanted[8 * number : 8 * number + 12], atol=FEATURE_TOLERANCE
        )


@pytest.mark.parametrize("rate", [48_000, 44_100, 8_000, 16_000])
def test_resampling_equals_the_devices(in_node, golden_bundle, rate):
    samples = _signal("odd", golden_bundle)
    found = in_node(
        samples,
        f"""
        const resampler = new Resampler({rate});
        const pieces = [];
        for (let at = 0; at < samples.length; at += 777)
          pieces.push(resampler.feed(samples.subarray(at, at + 777)));
        out = join([...pieces, resampler.finish()]);
        """,
    )
    np.testing.assert_allclose(found, resample(samples, rate), atol=1e-6)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
def test_wav_is_read_as_on_the_device(in_node, golden_bundle, tmp_path, subtype, form):
    stereo = _signal("odd", golden_bundle)[:2_000].reshape(-1, 2)
    path = tmp_path / "a.wav"
    soundfile.write(path, stereo, 16_000, subtype=subtype, format=form)
    found = in_node(stereo, 'out = readWav(Uint8Array.from(readFileSync("a.wav")).buffer).samples;')
    np.testing.assert_allclose(found, read_audio(path), atol=1e-7)


@pytest.fixture(scope="module")
def site(npm_packages, golden_bundle, tmp_path_factory):
    """The golden bundle with its page."""
    folder = tmp_path_factory.mktemp("site") / "bundle"
    shutil.copytree(golden_bundle, folder)
    web.write_page(folder)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_transcript_in_node_equals_the_devices(site, golden_bundle, precision):
    wav = golden_bundle / "test_wavs" / "0.wav"
    found = web.transcribe_in_node(site, wav, precision=precision)
    recognizer = StreamingRecognizer(open_bundle(golden_bundle), precision=precision)
    wanted = recognizer.transcribe(read_audio(wav))
    assert len(wanted.tokens) > 10
    assert found.tokens == wanted.tokens
    assert found.timestamps == wanted.timestamps
    assert found.text == wanted.text
    if precision == "fp32":
        np.testing.assert_allclose(found.log_probs, wanted.log_probs, atol=web.TOLERANCE)


def test_confidence_equals_the_devices(in_node, repo):
    vectors = json.loads((repo / "tests" / "device" / "confidences.json").read_text())
    page = (repo / "todm" / "export" / "page").as_uri()
    found = in_node(
        np.zeros(1),
        f"""
        const {{ confidence }} = await import("{page}/recognizer.js");
        const vectors = {json.dumps([v["log_probs"] for v in vectors])};
        out = Float32Array.from(vectors, confidence);
        """,
    )
    np.testing.assert_allclose(found, [v["confidence"] for v in vectors], atol=1e-7)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_lines_below_the_threshold_are_left_out(
    node, endpoint_site, endpoint_bundle, paused, tmp_path, share
):
    """As on the device; the threshold is between the confidences of the segments."""
    recognizer = StreamingRecognizer(open_bundle(endpoint_bundle))
    segments = list(transcribe_blocks(recognizer, [read_audio(paused)]))
    sure = sorted(s.confidence for s in segments)
    threshold = (sure[0] + sure[-1]) / 2 if share == 0.5 else share
    folder = shutil.copytree(endpoint_site, tmp_path / "bundle")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["info"]["decision_threshold"] = threshold
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    done = subprocess.run(
        [node, "page/run.mjs", ".", paused], cwd=folder, capture_output=True, text=True, check=True
    )
    wanted = [s.text for s in segments if s.confidence >= threshold]
    assert json.loads(done.stdout)["lines"] == wanted
    assert (len(wanted) < len(segments)) == (share > 0)


@pytest.fixture(scope="module")
def endpoint_site(npm_packages, endpoint_bundle, tmp_path_factory):
    """The bundle with an endpoint, and its page."""
    folder = tmp_path_factory.mktemp("endpoint") / "bundle"
    shutil.copytree(endpoint_bundle, folder)
    web.write_page(folder)
    return folder


@pytest.fixture(scope="module")
def paused(bursts, tmp_path_factory):
    """A recording with pauses."""
    path = tmp_path_factory.mktemp("paused") / "a.wav"
    write_wav(path, bursts[25 * 16_000 :])
    return path


def test_the_context_starts_again_as_on_the_device(
    node, site, endpoint_site, golden_bundle, endpoint_bundle, paused
):
    texts = []
    for folder, bundle in ((site, golden_bundle), (endpoint_site, endpoint_bundle)):
        command = [node, "page/run.mjs", ".", paused]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        recognizer = StreamingRecognizer(open_bundle(bundle))
        wanted = recognizer.transcribe(read_audio(paused))
        segments = list(transcribe_blocks(recognizer, [read_audio(paused)]))
        assert len(segments) > 1 or bundle == golden_bundle
        assert all(s.end - s.start < 19 for s in segments)  # on the page only pauses end a line
        assert found["lines"] == [s.text for s in segments]
        assert found["tokens"] == list(wanted.tokens)
        assert found["timestamps"] == list(wanted.timestamps)
        texts.append(wanted.text)
    assert texts[0] != texts[1]


def test_a_line_is_final_when_its_endpoint_has_come(node, endpoint_site, paused):
    script = f"""
        import {{ readFileSync }} from "node:fs";
        import * as ort from "{(endpoint_site / "ort").as_uri()}/ort.wasm.min.mjs";
        import {{ readWav }} from "{(endpoint_site / "page").as_uri()}/audio.js";
        import {{ Bundle }} from "{(endpoint_site / "page").as_uri()}/bundle.js";
        import {{ Recognizer }} from "{(endpoint_site / "page").as_uri()}/recognizer.js";
        ort.env.wasm.numThreads = 1;
        const read = async (name) => Uint8Array.from(readFileSync(name));
        const stream = (await Recognizer.load(ort, await Bundle.open(read), "fp32")).createStream();
        stream.accept(readWav(Uint8Array.from(readFileSync("{paused}")).buffer).samples);
        const seen = [];
        while (await stream.step()) seen.push([stream.timestamps.at(-1) ?? null, stream.isEnded]);
        console.log(JSON.stringify(seen));
    """
    command = [node, "--input-type=module", "-e", script]
    done = subprocess.run(command, cwd=endpoint_site, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    chunk, endpoint = 8, 5  # frames of 40 ms
    for number, (last, is_ended) in enumerate(seen, 1):
        gap = 0 if last is None else chunk * number - round(last / 0.04)
        assert is_ended == (gap > endpoint), number
    assert {is_ended for _, is_ended in seen} == {True, False}


def test_a_wrong_endpoint_is_refused(endpoint_site, golden_bundle, tmp_path):
    folder = shutil.copytree(endpoint_site, tmp_path / "site")
    manifest = json.loads((folder / MANIFEST).read_text())
    for wrong in ("soon", None, -1, 101, [], True):
        manifest["info"]["endpoint_seconds"] = wrong
        (folder / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match="The bundle is damaged: its endpoint is"):
            web.transcribe_in_node(folder, golden_bundle / "test_wavs" / "0.wav")


def test_export_writes_a_page_and_checks_it(npm_packages, toy_graphs, write_assets, tmp_path):
    from todm.export.bundle import ExportConfig, write_bundle
    from todm.export.sample import Sample, sample_signal

    sample = Sample(samples_S=sample_signal(2.0))
    config = ExportConfig(target="web", precisions=("fp32", "int8"))
    bundle = write_bundle(
        tmp_path / "page", toy_graphs, write_assets=write_assets, config=config, sample=sample
    )
    listed = json.loads((bundle.path / MANIFEST).read_text())["files"]
    assert {"index.html", "page/page.js", "ort/ort.wasm.min.mjs", "encoder.onnx"} <= set(listed)
    assert MANIFEST not in listed
    checks = bundle.metrics["checks"]
    assert checks["fp32, streaming in onnxruntime-web, log-probs"] < web.TOLERANCE
    for form in config.precisions[1:]:
        assert f"{form}, streaming in onnxruntime-web, share of tokens that differ" in checks
    assert "http.server" in (bundle.path / "README.md").read_text()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def browse(node, npm_packages, chromium, repo):
    """Serves a folder and goes through steps of export/web/drive.mjs; gives what each one shows."""
    servers = []

    def run(folder, *steps, mic=None):
        handler = functools.partial(_Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [node, "drive.mjs", f"http://127.0.0.1:{server.server_port}/", *map(str, steps)]
        command += ["--mic", str(mic)] if mic else []
        command += ["--browser", str(chromium)]
        done = subprocess.run(
            command, cwd=repo / "export" / "web", capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    yield run
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_reader_transcribes_files(site, golden_bundle, browse, tmp_path):
    wav = golden_bundle / "test_wavs" / "0.wav"
    other = tmp_path / "stereo.wav"  # another rate, two channels
    samples = resample(read_audio(wav), 16_000, 22_050)
    soundfile.write(other, np.stack([samples, samples], 1), 22_050, subtype="FLOAT")
    recognizer = StreamingRecognizer(open_bundle(golden_bundle))
    opened, chosen, dropped, sample = browse(
        site, "open", f"choose={wav}", f"drop={other}", "sample"
    )
    assert opened["status"] == "Ready."
    for shown, path in ((chosen, wav), (dropped, other), (sample, wav)):
        wanted = recognizer.transcribe(read_audio(path))
        assert " ".join(shown["lines"]) == wanted.text
        assert float(shown["rtf"]) > 0
        assert shown["latency"].endswith(" ms")
        assert shown["problems"] == []
        assert shown["foreign"] == []  # nothing but its own folder was asked for anything
    assert sample["kind"] == "good"


def test_a_reader_sees_lines_that_end_at_pauses(endpoint_site, endpoint_bundle, paused, browse):
    recognizer = StreamingRecognizer(open_bundle(endpoint_bundle))
    wanted = [s.text for s in transcribe_blocks(recognizer, [read_audio(paused)])]
    _, shown = browse(endpoint_site, "open", f"choose={paused}")
    assert shown["lines"] == wanted
    assert shown["open"] == 0
    assert shown["problems"] == []


def test_a_reader_sees_no_line_of_little_confidence(endpoint_site, paused, browse, tmp_path):
    folder = shutil.copytree(endpoint_site, tmp_path / "bundle")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["info"]["decision_threshold"] = 1.0
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _, shown = browse(folder, "open", f"choose={paused}")
    assert shown["lines"] == []
    assert shown["status"].startswith("No words were recognised")
    assert shown["problems"] == []


def test_a_reader_speaks(trained_bundle, npm_packages, browse, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(trained_bundle, site, ignore=shutil.ignore_patterns("page", "ort"))
    web.write_page(site)
    wav = site / "test_wavs" / "0.wav"
    wanted = StreamingRecognizer(open_bundle(trained_bundle)).transcribe(read_audio(wav))
    seconds = soundfile.info(wav).duration + 1
    _, listening, stopped = browse(site, "open", f"listen={seconds}", "stop", mic=wav)
    assert listening["state"] == "listening"
    assert listening["lines"] != []  # before the end
    # The browser resamples, and where the machine is busy its fake microphone skips: not word for word.
    found = " ".join(stopped["lines"]).split()
    alike = difflib.SequenceMatcher(None, found, wanted.text.split(), autojunk=False).ratio()
    assert alike >= 0.5, found
    assert stopped["problems"] == []


def _spoil(folder, how):
    manifest = json.loads((folder / MANIFEST).read_text())
    if how == "damaged":
        data = bytearray((folder / "encoder.onnx").read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "encoder.onnx").write_bytes(data)
    elif how == "longer":
        with (folder / "tokens.txt").open("a") as file:
            file.write("more 24\n")
    elif how == "incomplete":
        (folder / "joiner.onnx").unlink()
    elif how == "no manifest":
        (folder / MANIFEST).unlink()
        return
    elif how == "not JSON":
        (folder / MANIFEST).write_text("<!doctype html>")
        return
    elif how == "another kind":
        manifest["kind"] = "subnet"
    elif how == "another format":
        manifest["format_version"] = 2
    else:
        manifest["files"]["../../secret"] = manifest["files"]["tokens.txt"]
    (folder / MANIFEST).write_text(json.dumps(manifest))


REFUSED = {
    "damaged": "encoder.onnx does not match its manifest",
    "longer": "tokens.txt does not match its manifest",
    "incomplete": "joiner.onnx is missing",
    "no manifest": "There is no bundle here",
    "not JSON": "manifest.json is damaged",
    "another kind": "This is a subnet, and a bundle is needed",
    "another format": "has format 2, and this page reads 1",
    "outside": "names a file outside itself",
}


def test_a_bad_bundle_is_refused_in_a_sentence(site, golden_bundle, browse, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(site, root)
    places = {how: f"go=?bundle={how.replace(' ', '_')}" for how in REFUSED}
    for how, place in places.items():
        folder = root / place.partition("bundle=")[2]
        shutil.copytree(golden_bundle, folder)
        _spoil(folder, how)
    shown = browse(root, "open", *places.values(), "go=?bundle=https://example.org/")
    assert shown[0]["state"] == "ready"
    for (how, sentence), found in zip(REFUSED.items(), shown[1:], strict=False):
        assert found["state"] == "failed", how
        assert found["kind"] == "bad"
        assert sentence in found["status"], how
        assert found["status"].count(". ") == 0  # one sentence
    assert "only read from the server of the page itself" in shown[-1]["status"]
    assert shown[-1]["foreign"] == []
