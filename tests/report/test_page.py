import html.parser
import re

import pytest

from todm import artifact
from todm.errors import ArtifactError
from todm.report.page import page, templates
from todm.report.tables import Row

PNG = b"\x89PNG\r\n\x1a\n0000"


def _row(name, precision, error, megabytes, path):
    return Row(
        name=name,
        precision=precision,
        params=2e5,
        megabytes=megabytes,
        error=error,
        low=error / 2,
        high=2 * error,
        words=100,
        rtf=0.01,
        p50_ms=1.25,
        path=str(path),
    )


def _report():
    layer = {"name": "blocks.0.up", "kind": "linear 4x4", "done": "int8 <dynamic>", "why_not": ""}
    left = {"name": "head", "kind": "linear 2x4", "done": "", "why_not": "the head"}
    totals = {
        "layers_done": 1, "layers_left": 1, "bytes_before": 96, "bytes_after": 48,
        "size_ratio": 2.0, "ops_ratio": 9.5,
    }  # fmt: skip
    rows = [{**layer, "after": 0.00125}, {**left, "after": None}]
    return {"name": "int8", "totals": totals, "rows": rows}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "curves.png").write_bytes(PNG)
    corpus = artifact.save(tmp_path / "corpus", kind="corpus", config={})
    artifact.save(
        tmp_path / "supernet",
        kind="supernet",
        config={},
        parent=corpus.hash,
        metrics={"updates": 40, "dev": {"largest": {"error": 0.25}}},
    )
    artifact.save(
        tmp_path / "compressed/small",
        kind="compressed",
        config={},
        info={"compressed": {"reports": [_report()]}},
        write=lambda folder: (folder / "report.png").write_bytes(PNG),
    )
    artifact.save(
        tmp_path / "bundles/<small>", kind="bundle", config={}, info={"target": "sherpa-onnx"}
    )
    return tmp_path


def _page(run):
    path = run / "bundles/<small>"
    rows = [_row("<small>", "fp32", 0.02, 1.0, path), _row("<small>", "int8", 0.03, 0.5, path)]
    return page(run, rows)


class _Checker(html.parser.HTMLParser):
    """Every tag is closed in its order, and nothing is loaded from elsewhere."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_other_file(run):
    text = _page(run)
    checker = _Checker()
    checker.feed(text)
    assert checker.open == []
    assert checker.sources
    assert all(s.startswith(("data:image/png;base64,", "#")) for s in checker.sources)
    assert "url(" not in text
    assert "<script" not in text


def test_text_of_artifacts_is_escaped(run):
    text = _page(run)
    assert "&lt;small&gt;" in text
    assert "<small></h3>" not in text
    assert "int8 &lt;dynamic&gt;" in text


def test_figures_of_bundles_training_and_compression_are_on_it(run):
    text = _page(run)
    assert "40 updates, largest dev WER 25.00%" in text
    assert "&lt;small&gt; in fp32, has a WER of 2.00% on 100 words" in text
    assert "The smallest, &lt;small&gt; in int8, has 0.50 MB and a WER of 3.00%." in text
    assert "<td>9.5</td>" in text
    assert "not done: the head" in text
    assert "0.125%" in text
    assert text.count("data:image/png") == 2


def test_the_best_bundle_is_marked(run):
    marked = re.findall(r'<tr class="best">(.*?)</tr>', _page(run))
    assert len(marked) == 1
    assert "2.00%" in marked[0]


def test_stages_that_were_not_made_are_shown_as_missing(run):
    text = _page(run)
    assert text.count("stage absent") == 2  # front and subnet
    assert 'href="#search"' not in text


def test_a_damaged_artifact_is_an_error(run):
    (run / "compressed/small/report.png").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="damaged"):
        _page(run)


def test_a_table_has_its_cells_in_order():
    table = templates().get_template("macros.html.j2").module.table
    found = table(["a", "b"], [("1", "2"), ("3", "4")])
    assert re.findall(r"<t[hd]>(.*?)</t[hd]>", found) == ["a", "b", "1", "2", "3", "4"]
