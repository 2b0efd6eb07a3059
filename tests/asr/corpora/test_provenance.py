import pytest

from todm.asr.corpora import origins, provenance
from todm.asr.corpora.config import DataConfig, SpeechConfig
from todm.asr.corpora.provenance import Source


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [
        ("LICENSE", "Apache License\nVersion 2.0", "Apache-2.0 (by its LICENSE)"),
        ("README.md", "Clips, CC BY 3.0.", "CC BY (by its README.md)"),
        ("readme.txt", "Creative Commons CC-BY-NC 4.0", "CC BY-NC (by its readme.txt)"),
        ("LICENSE.txt", "Ask the owner.", "see its LICENSE.txt"),
        ("README", "Nothing is said.", "not stated"),
        ("notes", "MIT License", "not stated"),
    ],
)
def test_a_licence_is_what_the_folder_says(tmp_path, name, text, licence):
    (tmp_path / name).write_text(text)
    found = provenance.of_folder("noise", tmp_path)
    assert found == Source(kind="noise", name=tmp_path.name, licence=licence)


def test_a_file_has_the_licence_of_its_folder(tmp_path):
    (tmp_path / "LICENSE").write_text("MIT License")
    (tmp_path / "a.jsonl").write_text("")
    found = provenance.of_folder("speech", tmp_path / "a.jsonl")
    assert (found.name, found.licence) == ("a.jsonl", "MIT (by its LICENSE)")


def test_a_folder_of_folders_has_their_licences(tmp_path):
    for name, text in (("a", "MIT License"), ("b", "CC BY"), ("c", "MIT License"), ("d", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "LICENSE").write_text(text)
    licences = "MIT (by its LICENSE); CC BY (by its LICENSE); see its LICENSE"
    assert provenance.licence_in(tmp_path) == licences


def test_there_and_back_and_each_once():
    one = Source(kind="room", name="a")
    found = provenance.to_json([one, Source(kind="noise", name="b", licence="MIT"), one])
    assert len(found) == 2
    assert provenance.from_info({"provenance": found})[0] == one
    assert provenance.from_info({}) == []


def test_engines_and_voices_of_a_spoken_corpus():
    speech = SpeechConfig(voices={"espeak": 60, "kokoro": 40}, unseen=())
    found = origins.of_corpus(DataConfig(speech=speech))
    assert [(s.kind, s.name, s.detail) for s in found] == [
        ("engine", "espeak", "60%"), ("voices", "espeak", "60%"),
        ("engine", "kokoro", "40%"), ("voices", "kokoro", "40%"),
    ]  # fmt: skip
    assert "GPL-3.0" in found[0].licence
    assert found[3].licence == "Apache-2.0 (Kokoro-82M)"
