"""What each of two processes does, and one alone: the gradients of a step, and a whole training.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost python two_processes.py OUT PORT PORT ...
"""

import contextlib
import functools
import importlib.util
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from todm.asr.data.batch import LoaderConfig
from todm.asr.data.loader import Loader
from todm.asr.data.sources import Item
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.transducer import Rnnt, RnntConfig
from todm.asr.objective import ObjectiveConfig, RnntObjective
from todm.compress.train.sr_ste import SrSteConfig
from todm.errors import TodmError
from todm.supernet.sandwich import sandwich_step
from todm.supernet.space import SearchSpace, SpaceConfig
from todm.train.parallel import LostProcess, World
from todm.train.step import Learner

SPACE = SearchSpace(SpaceConfig(depths=(2, 3, 4), widths={"ffn": (16, 32), "pairs": (1, 2)}))
MIXED = SPACE.subnet(3, {"ffn": (32, 16, 32), "pairs": (1, 2, 2)})
SUBNETS = {
    "a sandwich": [SPACE.largest, MIXED, SPACE.smallest],
    "the largest alone": [SPACE.largest],
    "the last pass wider than the one before": [SPACE.largest, SPACE.smallest, MIXED],
}


class Rows(NamedTuple):
    """Some rows of six utterances of unequal length; also the order of their only batch."""

    rows: slice
    frames_N = np.array([96, 40, 81, 64, 52, 77])

    def labels_N(self, encode):
        return np.array([4, 1, 2, 5, 1, 3])

    def order(self, lengths, config, schedule):
        return self

    def num_batches(self, epoch):
        return 1

    def read(self, order, epoch, start):
        draws = torch.Generator().manual_seed(5)
        features = torch.randn(6, 96, 80, generator=draws)
        targets = torch.randint(3, 11, (6, 5), generator=draws).tolist()
        items = [
            Item(name, " ".join(map(str, row[:labels])), functools.partial(_copy, feature[:frames]))
            for name, row, labels, feature, frames in zip(
                "abcdef", targets, self.labels_N(None), features, self.frames_N, strict=True
            )
        ]
        yield items[self.rows]


def _copy(feature_TF, rendering):
    return feature_TF.clone()


def _encode(text):
    return list(map(int, text.split()))


def gradients(world, subnets):
    """Of one sandwich step, by parameter; zero where there is none."""
    torch.manual_seed(2)
    encoder = EncoderConfig(d_model=32, state=4, dropout=0.0).narrow(SPACE.largest)
    model = Rnnt(RnntConfig(vocab_size=11, joiner_dim=16, encoder=encoder))
    objective = RnntObjective(model, ObjectiveConfig(), label_sizes=[1] * 11)
    rows = slice(world.rank, None, world.size)
    step = next(iter(Loader(Rows(rows), _encode, config=LoaderConfig(), chunks=(8,))))
    sandwich_step(objective, step, subnets=subnets, progress=0.8)
    world.average_gradients(model.parameters())
    grads = {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()
    }
    return {"num_labels": step.num_labels, **grads}


def all_gradients(world):
    """Of every case."""
    return {name: gradients(world, subnets) for name, subnets in SUBNETS.items()}


def averages(world):
    """Means of gradients that are 1 in the first process and 3 in the second, where there are any."""
    kinds = {"both": torch.float32, "bfloat16": torch.bfloat16, "second": torch.float32}
    kinds |= {"neither": torch.float32, "frozen": torch.float32}
    params = {n: torch.nn.Parameter(torch.zeros(2, 3, dtype=d)) for n, d in kinds.items()}
    for name, p in params.items():
        if name not in ("neither", "second" if world.rank == 0 else ""):
            p.grad = torch.full_like(p, 1.0 + 2 * world.rank)
    params["frozen"].requires_grad = False
    before = {name: p.grad for name, p in params.items()}
    world.average_gradients(params.values())
    assert all(p.grad is before[n] for n, p in params.items() if before[n] is not None)
    return {name: p.grad for name, p in params.items()}


def _fake():
    path = Path(__file__).with_name("fake_backend.py")
    spec = importlib.util.spec_from_file_location("fake_backend", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trained(out):
    """The final weights of the toy training, without dropout."""
    fake = _fake()
    return fake.run(out, fake.FakeBackend(dropout=0.0)).tensors()


def masked(out):
    """The final weights of the toy training with N:M masks, and a hash of the masks of each process."""
    fake = _fake()
    sparse = SrSteConfig(n=1, m=4, decay=1e-3, refresh=2, layers=("layers.*",))
    digests, check = [], Learner.check_weights

    def noted(learner):
        digests.append(learner.sparse.digest())
        check(learner)

    Learner.check_weights = noted
    try:
        done = fake.run(out, fake.FakeBackend(), config=fake.CONFIG.replace(sparse=sparse))
    finally:
        Learner.check_weights = check
    return {"weights": done.tensors(), "digests": digests}


def resumed(out, next_port):
    """With dropout, which every process draws for itself: trained straight, and after a crash."""
    fake = _fake()
    straight = fake.run(out / "straight").tensors()

    def crash(index):
        if index == 13:
            raise InterruptedError

    next_port()
    with contextlib.suppress(InterruptedError):
        fake.run(out / "crashed", fake.FakeBackend(crash))
    next_port()
    return {"straight": straight, "resumed": fake.run(out / "crashed").tensors()}


def refusals(next_port, out):
    """The errors of each process when they differ in something."""
    fake, rank, messages = _fake(), World().rank, {}

    def attempt(name, work):
        next_port()
        try:
            work()
        except TodmError as error:
            messages[name] = str(error)

    other, build = fake.FakeBackend(), fake.FakeBackend().build

    def apart(subnet):
        net = build(subnet)
        with torch.no_grad():
            net.scale[0] += rank * 1e-6
        return net

    other.build = apart
    config = fake.CONFIG.replace(seed=rank)
    attempt("settings", lambda: fake.run(out / "settings", config=config))
    attempt("weights", lambda: fake.run(out / "weights", other))
    attempt("checkpoint", lambda: fake.run(out / ("straight" if rank else "nothing")))
    bad = fake.FakeBackend(lambda index: float("nan") if rank and index >= 2 else None)
    strict = fake.CONFIG.replace(max_bad_steps=3)
    attempt("bad", lambda: fake.run(out / "bad", bad, config=strict))
    return messages


def lost():
    """The error of the first process when the second is gone without a message."""
    try:
        with World().joined() as world:
            world.all_reduce_sum([1.0])
            if world.rank:
                os._exit(0)
            world.all_reduce_sum([1.0])
    except LostProcess as error:
        return str(error)
    return "nothing"


def main(place, *ports):
    """Each meeting of the processes has a port of its own, as each start of torchrun has."""
    left, rank = list(ports), World().rank

    def next_port():
        os.environ["MASTER_PORT"] = left.pop()

    next_port()
    with World().joined() as world:
        torch.save(all_gradients(world), place / f"gradients-{rank}.pt")
        torch.save(averages(world), place / f"averages-{rank}.pt")
    next_port()
    torch.save(trained(place / "run"), place / f"weights-{rank}.pt")
    next_port()
    torch.save(masked(place / "masked"), place / f"masked-{rank}.pt")
    next_port()
    torch.save(resumed(place, next_port), place / f"resumed-{rank}.pt")
    torch.save(refusals(next_port, place), place / f"refusals-{rank}.pt")
    next_port()
    torch.save(lost(), place / f"lost-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    _fake().draw_nothing()
    main(Path(sys.argv[1]), *sys.argv[2:])
