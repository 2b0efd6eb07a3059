import itertools
import math

import pytest

from todm.asr.decode.wer import (
    Wer,
    align,
    bootstrap,
    compare,
    score,
    write_alignments,
)


def distance(ref, hyp):
    """Levenshtein's distance by its definition."""
    if not ref or not hyp:
        return len(ref) + len(hyp)
    return min(
        distance(ref[1:], hyp[1:]) + (ref[0] != hyp[0]),
        distance(ref[1:], hyp) + 1,
        distance(ref, hyp[1:]) + 1,
    )


def test_alignment_is_the_shortest_for_all_short_sequences():
    words = [w for n in range(4) for w in itertools.product("ab", repeat=n)]
    for ref, hyp in itertools.product(words, words):
        pairs = align(ref, hyp)
        assert tuple(a for a, _ in pairs if a) == ref
        assert tuple(b for _, b in pairs if b) == hyp
        assert sum(a != b for a, b in pairs) == distance(ref, hyp)
        wer = score([" ".join(ref)], [" ".join(hyp)])
        kinds = ([not a for a, _ in pairs], [not b for _, b in pairs], [a != b for a, b in pairs])
        assert [wer.insertions, wer.deletions, wer.errors] == list(map(sum, kinds))


def test_equally_short_alignments_are_settled_the_same_way():
    assert align(["a", "a"], ["a"]) == [("a", "a"), ("a", "")]
    assert align(["a"], ["a", "a"]) == [("a", "a"), ("", "a")]
    assert align(["a", "b"], ["b", "c"]) == [("a", ""), ("b", "b"), ("", "c")]


def test_counts():
    wer = score(["open the door please", "stop", ""], ["open a door", "stop now", "yes"])
    assert (wer.insertions, wer.deletions, wer.substitutions, wer.words) == (2, 1, 1, 5)
    assert (wer.errors, wer.rate) == (4, 0.8)
    assert wer.utterances == ((2, 4), (1, 1), (1, 0))
    assert str(wer) == "80.00 % (4 errors in 5 words: 2 ins, 1 del, 1 sub)"


@pytest.mark.parametrize(("hyp", "rate"), [("", 0.0), ("noise", math.inf)])
def test_rate_without_reference_words(hyp, rate):
    assert score([""], [hyp]).rate == rate


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="2 hypotheses for 1 references"):
        score(["a"], ["a", "b"])


def alternating(num, every):
    hyps = ["x" if i % every == 0 else "a" for i in range(num)]
    return score(["a"] * num, hyps)


def test_bootstrap_matches_the_binomial_and_is_seeded():
    wer = alternating(1000, 10)
    interval = bootstrap(wer)
    half = 1.96 * math.sqrt(0.1 * 0.9 / 1000)
    assert interval.value == 0.1
    assert interval.low == pytest.approx(0.1 - half, abs=0.003)
    assert interval.high == pytest.approx(0.1 + half, abs=0.003)
    assert interval == bootstrap(wer)
    assert interval != bootstrap(wer, seed=1)


def test_bootstrap_of_nothing():
    interval = bootstrap(score([], []))
    assert (interval.value, interval.low, interval.high) == (0, 0, 0)


def test_paired_bootstrap_is_narrower_than_the_single_ones():
    theirs = alternating(1000, 5)
    hyps = ["x" if i % 5 == 0 and i % 50 else "a" for i in range(1000)]
    ours = score(["a"] * 1000, hyps)
    difference = compare(ours, theirs).difference
    assert difference.value == pytest.approx(-0.02)
    assert difference.high < 0
    assert compare(ours, theirs).p == 0
    assert difference.high - difference.low < 0.5 * (bootstrap(ours).high - bootstrap(ours).low)


def test_paired_bootstrap_needs_the_same_utterances():
    with pytest.raises(ValueError, match="same utterances"):
        compare(score(["a b"], ["a"]), score(["a"], ["a"]))


def test_wer_without_utterances_has_counts():
    assert Wer(insertions=1, deletions=0, substitutions=1, words=8).rate == 0.25


def test_alignment_file(tmp_path):
    refs, hyps = ["open the door", "stop"], ["open a door now", "stop"]
    wer = write_alignments(tmp_path / "errors.txt", ["u1", "u2"], refs, hyps)
    assert wer == score(refs, hyps)
    lines = (tmp_path / "errors.txt").read_text().splitlines()
    assert lines[0] == "WER 50.00 % (2 errors in 4 words: 1 ins, 0 del, 1 sub)"
    assert "  ERR open (the->a) door (->now)" in lines
    assert lines[lines.index("u2:") + 1 :][:3] == ["  REF stop", "  HYP stop", ""]
    assert "     1 the->a" in lines
    assert "     1      0      1      0       0  the" in lines
    assert "     0      0      0      0       1  now" in lines
    assert [p.name for p in tmp_path.iterdir()] == ["errors.txt"]


def test_comparison_is_relative_and_two_sided():
    theirs = alternating(1000, 5)
    ours = score(["a"] * 1000, ["x" if i % 5 == 0 and i % 50 else "a" for i in range(1000)])
    found = compare(ours, theirs)
    assert found.relative == pytest.approx(-0.1)
    assert found.low < -0.1 < found.high < 0
    assert found.p == 0
    assert found.difference.value == pytest.approx(-0.02)
    assert compare(theirs, ours).relative == pytest.approx(20 / 180)
    assert compare(theirs, ours).p == 0


def test_no_difference_has_p_one():
    wer = alternating(100, 5)
    assert (compare(wer, wer).relative, compare(wer, wer).p) == (0, 1)


def test_a_difference_by_chance_is_not_sure():
    ours = score(["a"] * 100, ["x" if i in (1, 2) else "a" for i in range(100)])
    theirs = score(["a"] * 100, ["x" if i in (1, 3, 4) else "a" for i in range(100)])
    assert 0.2 < compare(ours, theirs).p < 1
