"""Speech as compression sees it: the encoder's blocks, calibration audio, losses and word errors.

Letters: B batch, T frames, F bins, U labels, J joiner width, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from todm import artifact
from todm.artifact import Artifact
from todm.asr.backend import AsrBackend
from todm.asr.data.audio import SUFFIXES, cut_features
from todm.asr.data.batch import Batch, add_tail, collate
from todm.asr.data.features import FRAME_SHIFT, MIN_SAMPLES, SAMPLE_RATE, fbank
from todm.asr.data.statistics import spread_cuts
from todm.asr.decode.search import greedy_search
from todm.asr.loading import backend_of, load_model
from todm.asr.model.transducer import JoinerInputs, Rnnt
from todm.asr.objective import lattice_loss
from todm.backend import Graph
from todm.compress.adapter import Fold
from todm.device.audio import read_audio
from todm.errors import ArtifactError, CorpusError
from todm.kernels.rnnt_loss import Teacher

_PIECE_SECONDS = 20.0
_BATCH = 8
_FRONT_END = "the front end reads the features, and is where quantisation costs most"
_RUNS_ONCE = "runs once a label, on a few weights"
_KEPT = {
    "encoder.subsampling.*": _FRONT_END,
    "predictor.*": _RUNS_ONCE,
    "project": "all that the joiner gets from the encoder: a small layer that every label depends on",
    "output": "the joiner's output: a small layer that every label depends on",
}
_FOLDS = (
    Fold(layers=("mixer.w_in",), inspect="mixer", into="mixer_norm"),
    Fold(layers=("mixer.w_out",), inspect="mixer.w_out"),
    Fold(layers=("up",), inspect="up", into="ffn_norm"),
    Fold(layers=("down",), inspect="down"),
)


def adapter_of(source: Artifact, corpus: Path | None = None) -> "AsrAdapter":
    """An extracted subnet, or what was made of one, with its data.

    Args:
        source: the artifact.
        corpus: its data; by default the corpus it was trained on, if that is still there.

    Raises:
        ArtifactError: a supernet, whose widths are arguments of a call: a plain model is needed.
    """
    if source.kind == "supernet":
        raise ArtifactError(
            f"{source.path} is a supernet: cut a net out of it first, with  todm extract-subnet"
        )
    there = corpus or Path(source.info.get("corpus", ""))
    has_data = corpus is not None or (there / artifact.MANIFEST).is_file()
    speech = backend_of(source, corpus=there if has_data else None, with_data=has_data)
    return AsrAdapter(speech, load_model(source, speech))


class AsrAdapter:
    """`todm.compress.adapter.ModelAdapter` for speech."""

    backend = "asr"
    block_lists: Sequence[str] = ("encoder.blocks",)
    kept: Mapping[str, str] = _KEPT

    def __init__(self, speech: AsrBackend, model: Rnnt) -> None:
        """Wrap a plain model and the backend that it belongs to."""
        self.speech, self.model = speech, model

    def folds(self, block: nn.Module) -> Sequence[Fold]:
        """Norms take over the factors of what they feed, and the mixer those of its output layer."""
        return _FOLDS

    def resident(self, prefix: str) -> AbstractContextManager[None]:
        """Nothing to do: a recogniser is small."""
        return nullcontext()

    def calibration(self, num: int, file: Path | None) -> list[Batch]:
        """Utterances as in evaluation, with silence appended, in batches of similar length.

        Args:
            num: utterances; a recording of more than 20 s counts as several pieces.
            file: audio, a folder with audio, or a list of audio files, one a line; the training
                split if None.

        Raises:
            CorpusError: too few utterances, or audio that cannot be used.
        """
        place = self._training if file is None else file
        source = _of_corpus(place, num) if file is None else _of_files(place)
        features = sorted(islice(source, num), key=len)
        if len(features) < num:
            raise CorpusError(
                f"calibration needs {num} utterances, and {place} has {len(features)}: give more "
                f"audio, or ask for fewer with  --set num_calibration={max(len(features), 1)}"
            )
        return [self._batch(features[i : i + _BATCH]) for i in range(0, num, _BATCH)]

    @torch.no_grad()
    def run(self, model: nn.Module, batch: Batch) -> Tensor:
        """Recognise a batch; encoder outputs [B, T', D]. Every layer is called as on a device."""
        assert isinstance(model, Rnnt)
        training, moved = model.training, batch.to(_device(model))
        model.eval()
        try:
            enc_BTD, lens_B = model.encode(
                moved.features_BTF, moved.feature_lens_B, chunk=moved.chunk
            )
            greedy_search(model, enc_BTD, lens_B, endpoint=self.speech.config.endpoint_frames)
        finally:
            model.train(training)
        return enc_BTD

    def batches(self, seed: int) -> Iterator[Batch]:
        """The recipe's training batches, augmented, of all lengths from the start."""
        config = self.speech.config
        loader = config.loader.replace(seed=seed, short_first=0.0)
        speech = AsrBackend(
            config.replace(loader=loader), self.speech.assets, corpus=self.speech.corpus
        )
        speech.prepare()
        return iter(speech.batches(rank=0, world_size=1, num_updates=1))

    def losses(
        self,
        batch: Batch,
        student: nn.Module,
        teacher: nn.Module | None,
        *,
        temperature: float,
    ) -> dict[str, Tensor]:
        """Per label: the RNN-T loss, and the divergence from the teacher over its whole lattice.

        Both networks keep the mode (dropout) that they are in; the teacher gets no gradient.
        A temperature divides both networks' logits, and their divergence is multiplied with its
        square (Hinton et al., arXiv 1503.02531); how much a node counts is as without it.

        Args:
            batch: one of `batches`.
            student: a plain model, compressed or not.
            teacher: another of the same vocabulary; None for the loss against labels alone.
            temperature: of the soft loss.
        """
        assert isinstance(student, Rnnt)
        batch, objective = batch.to(_device(student)), self.speech.config.objective
        config = objective.replace(
            fastemit=0.0,
            delay_penalty=0.0,
            # torchaudio's loss knows no divergence.
            rnnt_impl=None if objective.rnnt_impl == "torchaudio" else objective.rnnt_impl,
        )
        teacher_out = None
        if teacher is not None:
            assert isinstance(teacher, Rnnt)
            with torch.no_grad():
                joiner, lens_B = _forward(teacher, batch)
                occupancy = lattice_loss(joiner, lens_B, batch, config).occupancy
            teacher_out = Teacher(*joiner, occupancy)
        joiner, lens_B = _forward(student, batch)
        at_one = teacher_out if temperature == 1 else None
        result = lattice_loss(joiner, lens_B, batch, config, teacher=at_one)
        losses = {"hard": result.loss_B.sum() / batch.num_labels}
        if teacher_out is not None:
            if at_one is None:
                hot = Teacher(*_divide_logits(teacher_out[:4], temperature), teacher_out.occupancy)
                cooled = _divide_logits(joiner, temperature)
                result = lattice_loss(cooled, lens_B, batch, config, teacher=hot)
            losses["soft"] = temperature**2 * result.divergence_B.sum() / batch.num_labels
        return losses

    def evaluate(self, model: nn.Module, *, split: str, limit: int = 0) -> dict[str, Any]:
        """WER of greedy search, with its interval and counts."""
        figures = self.speech.evaluate(model, subnet=None, split=split, limit=limit)
        return {**figures, "metric": "WER"}

    def graphs(self, model: nn.Module) -> list[Graph]:
        """Streaming encoder, decoder and joiner."""
        return self.speech.graphs(model)

    def write_assets(self, directory: Path) -> None:
        """The tokenizer's files."""
        self.speech.write_assets(directory)

    @property
    def _training(self) -> Path:
        if self.speech.corpus is None:
            raise CorpusError(
                "the corpus this net was trained on is gone: name a corpus, or audio with  "
                "--calibration PATH"
            )
        return self.speech.corpus / "cuts_train.jsonl.gz"

    def _batch(self, features: Sequence[Tensor]) -> Batch:
        """Some utterances without transcripts."""
        num, chunk = len(features), self.speech.config.eval_chunk
        plain = collate(features, [[]] * num, [""] * num, [""] * num)
        tail = math.ceil(self.speech.config.tail_seconds(chunk) / FRAME_SHIFT)
        return dataclasses.replace(add_tail(plain, tail), chunk=chunk, num_labels=1.0)


def _of_corpus(cuts: Path, num: int) -> Iterator[Tensor]:
    """Features [T, F] of utterances from all over a split."""
    for cut in spread_cuts(cuts, num):
        yield cut_features(cut, (1.0,))[0]


def _of_files(place: Path) -> Iterator[Tensor]:
    """Features [T, F] of the user's recordings, in pieces of at most 20 s."""
    for path in _audio_files(place):
        samples_S = torch.from_numpy(read_audio(path))
        for piece_S in samples_S.split(round(_PIECE_SECONDS * SAMPLE_RATE)):
            if len(piece_S) >= MIN_SAMPLES:
                yield fbank(piece_S)


def _audio_files(place: Path) -> list[Path]:
    """A recording itself, all below a folder, or those that a text file names."""
    if place.is_dir():
        files = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise CorpusError(
                f"{place} holds no audio: calibration takes {', '.join(sorted(SUFFIXES))}"
            )
        return files
    if place.suffix.lower() in SUFFIXES:
        return [place]
    try:
        lines = place.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(
            f"{place} cannot be read as a list of audio files ({error}): give a folder, a "
            "recording, or a text file with a path a line"
        ) from None
    return [place.parent / line.strip() for line in lines if line.strip()]


def _forward(model: Rnnt, batch: Batch) -> tuple[JoinerInputs, Tensor]:
    """What the loss takes of a network, and the lengths of the utterances."""
    enc_BTD, lens_B = model.encode(
        batch.features_BTF, batch.feature_lens_B, chunk=batch.chunk, wait=batch.wait
    )
    pred_BUJ = model.predict_sequence(batch.targets_BU, batch.reset_BU)
    return model.joiner_inputs(enc_BTD, pred_BUJ), lens_B


def _divide_logits(joiner: JoinerInputs, temperature: float) -> JoinerInputs:
    enc_BTJ, pred_BUJ, weight_VJ, bias_V = joiner
    return enc_BTJ, pred_BUJ, weight_VJ / temperature, bias_V / temperature


def _device(model: Rnnt) -> torch.device:
    return model.encoder.subsampling.mean.device
