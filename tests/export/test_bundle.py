"""Export end to end with random weights: what is written, and that real runtimes agree on it."""

import json


def test_bundle_holds_what_the_contract_names(toy_bundle):
    names = {p.relative_to(toy_bundle).as_posix() for p in toy_bundle.rglob("*") if p.is_file()}
    assert names == {
        "manifest.json", "README.md", "tokens.txt", "bpe.model", "bpe.vocab",
        "encoder.onnx", "encoder.int8.onnx", "encoder.int8.rr.onnx",
        "decoder.onnx", "decoder.int8.onnx", "joiner.onnx", "joiner.int8.onnx",
        "offline/encoder.onnx", "offline/encoder.int8.onnx", "offline/encoder.int8.rr.onnx",
        "test_wavs/0.wav", "test_wavs/expected.json",
    }  # fmt: skip
    print(json.dumps(json.loads((toy_bundle / "manifest.json").read_text())["metrics"], indent=1))
    print((toy_bundle / "README.md").read_text())
    print((toy_bundle / "test_wavs/expected.json").read_text()[:600])
