"""What `--target web` needs on this machine; the page itself is tested in tests/export/runners."""

import json

import pytest

from todm.errors import ConfigError
from todm.export import web


@pytest.fixture
def package(tmp_path, monkeypatch):
    """States a folder as the npm package, in the given version."""

    def write(version):
        (tmp_path / "package.json").write_text(json.dumps({"version": version}))
        monkeypatch.setenv("TODM_ORT_WEB", str(tmp_path))
        return tmp_path

    return write


def test_the_tested_version_is_taken(package):
    place = package(web.ORT_WEB)
    assert web.find_runtime() == place


def test_another_version_is_refused(package):
    package("1.17.0")
    with pytest.raises(ConfigError, match=rf"is onnxruntime-web 1\.17\.0.* {web.ORT_WEB}"):
        web.find_runtime()


def test_without_the_package_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TODM_ORT_WEB", str(tmp_path))
    with pytest.raises(ConfigError, match=f"npm install onnxruntime-web@{web.ORT_WEB}"):
        web.find_runtime()


def test_without_node_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs the program node"):
        web.find_node()


def test_set_up_installs_the_tested_version(repo):
    assert f"onnxruntime-web@{web.ORT_WEB}" in (repo / "export" / "web" / "setup.sh").read_text()


def test_the_page_asks_nothing_of_other_places(repo):
    """No address of another machine in any file of ours."""
    page = repo / "todm" / "export" / "page"
    sources = {p.name: p.read_text() for p in page.iterdir()}
    assert "index.html" in sources
    assert [n for n, text in sources.items() if "https://" in text or "//cdn" in text] == []
    assert "default-src 'none'" in sources["index.html"]
