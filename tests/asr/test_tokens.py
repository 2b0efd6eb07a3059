import pytest

from todm.asr import tokens
from todm.asr.tokens import TokensConfig
from todm.errors import ConfigError, CorpusError

TEXTS = ["TURN ON THE LIGHTS", "TURN OFF THE FAN", "DON'T STOP", "PLAY THE NEXT SONG"] * 10


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokens")
    return tokens.train(TEXTS, TokensConfig(vocab_size=40), out), out


def test_special_ids_and_files(trained):
    tokenizer, out = trained
    table = [line.rsplit(" ", 1) for line in (out / "tokens.txt").read_text().splitlines()]
    assert [int(i) for _, i in table] == list(range(tokenizer.vocab_size))
    assert [s for s, _ in table] == tokenizer.symbols
    assert tokenizer.symbols[:3] == ["<blk>", "<sos/eos>", "<unk>"]
    vocab = [line.split("\t") for line in (out / "bpe.vocab").read_text().splitlines()]
    assert [piece for piece, _ in vocab] == tokenizer.symbols
    assert all(float(score) <= 0 for _, score in vocab)


def test_round_trip(trained):
    tokenizer, out = trained
    again = tokens.load(out)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert min(ids) > 2
        assert tokenizer.decode([0, *ids, 1, 2, 0]) == text
        assert again.encode(text) == ids


def test_pieces_are_no_longer_than_asked(trained):
    tokenizer, _ = trained
    assert max(len(s) for s in tokenizer.symbols[3:]) <= 4


def test_an_unseen_letter_is_unknown(trained):
    assert 2 in trained[0].encode("ZEBRA")


def test_markup_in_text_is_not_a_special_token(tmp_path):
    tokenizer = tokens.train(
        ["a b <x>"] * 5, TokensConfig(vocab_size=20, normalise="none"), tmp_path
    )
    assert tokenizer.decode(tokenizer.encode("a <x> b")) == "a <x> b"


def test_the_real_size_is_read_back(tmp_path):
    tokenizer = tokens.train(["ONE TWO"] * 3, TokensConfig(vocab_size=500), tmp_path)
    assert 8 <= tokenizer.vocab_size < 500
    assert len((tmp_path / "tokens.txt").read_text().splitlines()) == tokenizer.vocab_size


@pytest.mark.parametrize(
    ("text", "rule", "wanted"),
    [
        ("  turn   on ", "upper", "TURN ON"),
        ("don\u2019t", "upper", "DON'T"),
        ("Über  alles", "none", "Über alles"),
        ("U\u0308ber", "none", "Über"),
        ("\ufeffΆνοιξε τα φώτα,\u00a0παρακαλώ", "none", "Άνοιξε τα φώτα, παρακαλώ"),
        ("Άνοιξε τα φώτα!", "lower", "άνοιξε τα φώτα"),
        ("打开 厨房的灯。", "lower", "打开 厨房的灯"),
        ("बत्ती जलाओ।", "lower", "बत्ती जलाओ"),
        ("क्\u200dष", "lower", "क्\u200dष"),
        ("Straße 42, 3. Stock", "lower", "straße 42 3 stock"),
        ("It\u2019s 5-fold", "lower", "it's 5 fold"),
        ("İstanbul", "lower", "i\u0307stanbul"),
    ],
)
def test_normalise(text, rule, wanted):
    assert tokens.normalise(text, rule) == wanted


def test_normalise_names_foreign_signs():
    with pytest.raises(ValueError, match=r"signs outside A-Z and ': - 2 Ü$"):
        tokens.normalise("über-2")


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [([], 40, "no transcript holds any text"), (["ABCDEFGHIJ"], 8, "set tokens.vocab_size to 14")],
)
def test_what_cannot_be_trained(tmp_path, texts, size, message):
    with pytest.raises(CorpusError, match=message):
        tokens.train(texts, TokensConfig(vocab_size=size), tmp_path)


def test_loading_what_is_no_model(tmp_path):
    with pytest.raises(CorpusError, match="does not exist"):
        tokens.load(tmp_path)
    (tmp_path / "bpe.model").write_bytes(b"no model")
    with pytest.raises(CorpusError, match="not a sentencepiece model"):
        tokens.load(tmp_path)


def test_sizes_out_of_range():
    with pytest.raises(ConfigError, match="vocab_size is 2"):
        TokensConfig(vocab_size=2)
    with pytest.raises(ConfigError, match="max_piece_length is 0"):
        TokensConfig(max_piece_length=0)


@pytest.mark.parametrize("rule", ["upper", "lower", "none"])
def test_control_characters_are_refused(rule):
    with pytest.raises(ValueError, match=r"control characters: U\+0000"):
        tokens.normalise("a\0b", rule)


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        (["turn on", "Don't"], "upper"),
        (["turn on"] * 99 + ["2"], "upper"),
        (["Turn on."] * 9 + ["turn"], "none"),
        (["Grüß Gott"], "none"),
        ([], "none"),
    ],
)
def test_the_rule_is_found(texts, rule):
    assert tokens.resolve("auto", texts) == rule
    assert tokens.resolve("lower", texts) == "lower"


@pytest.mark.parametrize(
    "text",
    ["Grüß Gott, 42 Äpfel!", "Άνοιξε τα φώτα", "打开厨房的灯", "बत्ती जलाओ", "Turn ON the TV-set"],
)
def test_any_language_comes_back_from_its_tokens(tmp_path, text):
    rule = tokens.resolve("auto", [text])
    config = TokensConfig(vocab_size=60, normalise=rule)
    normal = tokens.normalise(text, rule)
    tokenizer = tokens.train([normal] * 5, config, tmp_path)
    assert tokenizer.decode(tokenizer.encode(normal)) == text
    assert tokens.load(tmp_path, rule=rule).encode(normal) == tokenizer.encode(normal)
