"""The section on chunk sizes in the cards of exports."""

from todm.export.decoding import chunk_table

DELAY = {"num": 5, "of": 6, "mean": 0.2, "p50": 0.16, "p90": 0.284}
ROW = {"split": "dev", "utterances": 6, "words": 12, "error": 0.25, "low": 0.1, "high": 0.4}
LATENCY = {"words": DELAY, "last": DELAY, "final": {**DELAY, "p50": 0.8}}


def test_the_row_of_the_export_is_marked():
    rows = [{**ROW, "chunk": chunk, "latency": LATENCY} for chunk in (4, 16)]
    text = chunk_table(rows, 16)
    assert text.startswith("## Chunk sizes\n")
    assert "6 dev utterances (12 words)" in text
    assert "| 160 ms | 25.00% | 10.00% to 40.00% | 0.16 | 0.28 | 0.80 | 0.28 |" in text
    assert "| **640 ms** | **25.00%** | **10.00% to 40.00%** | **0.16** |" in text


def test_delays_are_left_out_where_the_corpus_has_none():
    text = chunk_table([{**ROW, "chunk": 4, "latency": None}], 4)
    assert "| chunk | WER | 95 % interval |\n" in text
    assert "| **160 ms** | **25.00%** | **10.00% to 40.00%** |\n" in text
    assert "elay" not in text


def test_a_chunk_at_which_no_last_word_was_right_has_no_delay():
    rows = [
        {**ROW, "chunk": 4, "latency": LATENCY},
        {**ROW, "chunk": 8, "latency": {"words": DELAY, "last": None, "final": None}},
        {**ROW, "chunk": 16, "latency": None},
    ]
    assert chunk_table(rows, 4).count("|  |  |  |  |\n") == 2


def test_without_figures_there_is_no_section():
    assert chunk_table([], 16) == ""
