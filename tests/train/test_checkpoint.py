import pytest
import torch

from todm.errors import TrainingError
from todm.train import checkpoint


def _write(directory, *updates):
    for update in updates:
        checkpoint.write(directory, update, {"update": update, "weight": torch.full((3,), update)})


def _names(directory):
    return sorted(p.name for p in directory.iterdir())


def test_the_newest_is_read(tmp_path):
    _write(tmp_path / "deep" / "place", 5, 12)
    state = checkpoint.read_latest(tmp_path / "deep" / "place")
    assert state["update"] == 12
    assert state["weight"].tolist() == [12, 12, 12]


def test_two_are_kept(tmp_path):
    _write(tmp_path, 1, 2, 30, 400)
    assert _names(tmp_path) == ["update-00000030.pt", "update-00000400.pt"]


def test_none_is_no_error(tmp_path):
    assert checkpoint.read_latest(tmp_path / "nowhere") is None
    assert checkpoint.read_latest(tmp_path) is None


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "pickle"])
def test_a_damaged_newest_falls_back_with_a_warning(tmp_path, caplog, damage):
    _write(tmp_path, 1, 2)
    path = tmp_path / "update-00000002.pt"
    whole = path.read_bytes()
    contents = {"empty": b"", "cut": whole[: len(whole) // 2], "garbage": b"x" * 500}
    assert checkpoint.read_latest(tmp_path)["update"] == 2
    assert caplog.messages == []
    path.write_bytes(contents.get(damage, b"\x80\x02cos\nsystem\nq\x00."))
    assert checkpoint.read_latest(tmp_path)["update"] == 1
    assert caplog.messages == [f"{path} cannot be read: training goes on from update-00000001.pt"]


def test_none_that_can_be_read_is_an_error(tmp_path):
    _write(tmp_path, 1, 2)
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(TrainingError, match=r"no checkpoint in .* can be read: remove it"):
        checkpoint.read_latest(tmp_path)


def test_a_crash_while_writing_leaves_the_last_good_one(tmp_path, monkeypatch):
    _write(tmp_path, 1)

    def fail(state, handle):
        handle.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(tmp_path, 2, {})
    assert _names(tmp_path) == ["update-00000001.pt"]
    monkeypatch.undo()
    assert checkpoint.read_latest(tmp_path)["update"] == 1


def test_what_a_killed_process_left_is_not_read_and_not_kept(tmp_path):
    _write(tmp_path, 1)
    (tmp_path / ".update-00000002.pt.4711.tmp").write_bytes(b"half")
    assert checkpoint.read_latest(tmp_path)["update"] == 1
    _write(tmp_path, 2)
    assert _names(tmp_path) == ["update-00000001.pt", "update-00000002.pt"]


def test_that_of_another_version_is_refused(tmp_path):
    torch.save({"update": 9}, tmp_path / "update-00000009.pt")
    with pytest.raises(
        TrainingError, match=r"00009\.pt was written by another version of todm: fin"
    ):
        checkpoint.read_latest(tmp_path)


def test_nothing_is_unpickled(tmp_path):
    """A checkpoint may come from anywhere: code in it is not run."""

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("",))

    torch.save({"update": 9, "evil": Evil()}, tmp_path / "update-00000009.pt")
    with pytest.raises(TrainingError):
        checkpoint.read_latest(tmp_path)
    assert not (tmp_path / "ran").exists()
