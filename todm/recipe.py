"""Recipes: one complete configuration of all stages, by name.

The one module that combines the settings of a modality with those of the stages. Each number has its
source beside it; "icefall" is its LibriSpeech recipe for Zipformer (arXiv 2310.11230,
egs/librispeech/ASR), the best open one at these sizes.
"""

import dataclasses

from todm.asr.config import AsrConfig
from todm.asr.corpora.config import DataConfig
from todm.asr.data.augment import AugmentConfig
from todm.asr.data.batch import LoaderConfig
from todm.asr.data.rooms import RoomConfig
from todm.asr.model.encoder_config import EncoderConfig
from todm.asr.model.transducer import RnntConfig
from todm.asr.objective import ObjectiveConfig
from todm.asr.tokens import TokensConfig
from todm.config import Config
from todm.errors import ConfigError
from todm.supernet.space import SpaceConfig
from todm.train.config import TrainConfig
from todm.train.optim import OptimConfig
from todm.train.schedule import ScheduleConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """All settings of a run."""

    name: str
    asr: AsrConfig
    train: TrainConfig


def named(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        ConfigError: no such recipe.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown config {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()


def commands() -> Recipe:
    """A voice-command recogniser trained on synthetic speech: half an hour on two CPU cores."""
    return Recipe(
        name="commands",
        asr=AsrConfig(
            data=DataConfig(
                # Noise needs more updates than anything else (docs/log.md): this fits half an hour.
                room=RoomConfig(
                    clean=0.5,
                    room=0.5,
                    noise=0.6,
                    snr_db=(12.0, 35.0),
                    rt60=(0.1, 0.3),
                    direct_db=(3.0, 15.0),
                ),
                # Whole words: a closed vocabulary of 76, each spoken at least 55 times (docs/log.md).
                tokens=TokensConfig(vocab_size=160, max_piece_length=16),
            ),
            loader=LoaderConfig(batch_size=8),
            augment=AugmentConfig(
                gain_db=(-4.0, 4.0),
                noise_prob=0.25,
                snr_db=(15.0, 50.0),
                max_tail=60,
                max_offset=32,
                join_prob=0.1,
                no_speech_prob=0.06,
                spec_prob=0.3,
                num_time_masks=2,
                time_mask_frames=12,
                time_mask_share=0.1,
                freq_mask_bins=12,
                # What a device hears before a command, once the net hears commands (docs/log.md).
                device_from=0.4,
                wait_prob=0.5,
                context_reset=0.1,
            ),
            model=RnntConfig(joiner_dim=96, encoder=EncoderConfig(d_model=96, dropout=0.05)),
            space=SpaceConfig(
                depths=(3, 4, 5), widths={"ffn": (64, 128, 256, 384), "pairs": (2, 3, 4)}
            ),
            objective=ObjectiveConfig(
                # Students are there from the first update, and learn from the largest net as soon as it
                # has an alignment (docs/log.md).
                align_until=0.1,
                ctc_until=0.5,
                distill_from=0.1,
                distill_full=0.2,
            ),
            chunks=(4, 8, 16),  # 160, 320 and 640 ms
            chunk=8,
        ),
        train=TrainConfig(
            num_updates=5000,
            sandwich_from=0.0,
            student_weight=0.15,  # docs/log.md
            num_threads=1,
            num_processes=2,
            optim=OptimConfig(lr=0.04, adamw_lr=0.002),  # docs/log.md
            schedule=ScheduleConfig(kind="cosine"),
        ),
    )


def debug() -> Recipe:
    """Runs every stage in a minute or two; too small to recognise anything."""
    base = commands()
    data = base.asr.data.replace(num_train=160, num_dev=24, num_test=24)
    asr = base.asr.replace(
        data=data,
        loader=LoaderConfig(batch_size=8, speeds=(1.0,)),
        model=RnntConfig(joiner_dim=64, encoder=EncoderConfig(d_model=64, state=8)),
        space=SpaceConfig(depths=(2, 3), widths={"ffn": (64, 128), "pairs": (2, 4)}),
    )
    return Recipe(
        name="debug", asr=asr, train=base.train.replace(num_updates=40, eval_every=0.5, log_every=5)
    )


def clean100() -> Recipe:
    """LibriSpeech train-clean-100 and corpora of that size, on one GPU.

    8.9M parameters in the largest net, 2.3M in the smallest.
    """
    return Recipe(
        name="clean100",
        asr=AsrConfig(
            data=DataConfig(
                min_seconds=1.0,  # icefall; also longer than 20 s is left out
                tokens=TokensConfig(vocab_size=500, max_piece_length=16),  # icefall: 500 pieces
            ),
            # 1000 s of audio a GPU: icefall's --max-duration. Features of 300 h (three speeds of 100 h)
            # take 17 GB on disk.
            loader=LoaderConfig(
                feature_mode="map", speeds=(0.9, 1.0, 1.1), batch_size=None, max_frames=100_000
            ),
            augment=long_augmentation(),
            model=RnntConfig(
                joiner_dim=512,  # icefall, for predictor and joiner
                # 0.1 to 0.2 is usual in the largest net (AlphaNet 0.2); more with little data.
                encoder=EncoderConfig(d_model=256, state=16, dropout=0.15),
            ),
            # From a third to the size of Conformer-S (10.3M).
            space=SpaceConfig(
                depths=(6, 8, 10, 12), widths={"ffn": (256, 512, 768, 1024), "pairs": (4, 6, 8)}
            ),
            objective=ObjectiveConfig(
                # With 500 pieces, one symbol for each of 25 frames a second is enough: icefall's greedy
                # search has one WER for 1, 2 and 3 (RESULTS-100hours.md, 6.34 and 16.7 %).
                topology="standard",
                ctc_start=1.0,
                ctc_end=0.2,  # icefall's --ctc-loss-scale
                ctc_until=0.1,
                distill_from=0.05,  # as soon as there are students
                distill_full=0.1,
            ),
            chunks=(8, 16, 32, 0),  # 320 ms, 640 ms, 1.28 s, offline: as streaming Zipformer
            chunk=8,
        ),
        train=TrainConfig(
            num_updates=54_000,  # 50 epochs of 300 h; icefall's 100 h results change little after 40
            sandwich_from=0.05,
            num_random=1,  # one more net adds half of the largest's cost to an update
            average_last=0.3,  # icefall averages the last 9 of 30 and 16 of 40 epochs
            eval_every=0.02,  # once an epoch
            eval_limit=500,
            log_every=50,
            checkpoint_minutes=10,
            optim=OptimConfig(lr=0.04),  # icefall's base-lr below 25M parameters
            schedule=ScheduleConfig(kind="eden", reference_seconds=2000),  # icefall's, by audio
        ),
    )


def full960() -> Recipe:
    """LibriSpeech 960 h, on several GPUs.

    42.2M parameters in the largest net, 7.6M in the smallest. The number of updates is for four GPUs
    of 1000 s each; on N GPUs, 520,000 / N updates see the same audio.
    """
    base = clean100()
    asr = base.asr.replace(
        # Features of 2,880 h do not fit a usual disk: loader processes compute them.
        loader=base.asr.loader.replace(feature_mode="on_the_fly", num_workers=8),
        model=RnntConfig(joiner_dim=512, encoder=EncoderConfig(d_model=512, state=16, dropout=0.1)),
        # Around Zipformer-S (23.3M) and Conformer-M (30.9M).
        space=SpaceConfig(
            depths=(8, 10, 12, 14, 16),
            widths={"ffn": (512, 1024, 1536, 2048), "pairs": (8, 12, 16)},
        ),
    )
    train = base.train.replace(
        num_updates=130_000,  # 50 epochs, as Zipformer-M (2.22 / 4.87 %)
        optim=OptimConfig(lr=0.045),  # icefall's base-lr
    )
    return Recipe(name="full960", asr=asr, train=train)


def long_augmentation() -> AugmentConfig:
    """Augmentation of long trainings on read speech; `asr.noise` is a folder of noise, such as MUSAN."""
    return AugmentConfig(
        # SpecAugment as in icefall (lhotse's, p 0.9).
        spec_prob=0.9,
        warp_frames=80,
        num_freq_masks=2,
        freq_mask_bins=27,
        num_time_masks=10,
        time_mask_frames=100,
        time_mask_share=0.15,
        # MUSAN as in icefall.
        noise_prob=0.5,
        snr_db=(10.0, 20.0),
        # A device neither normalises nor segments: any level, silence around the speech or hours of it
        # before, several utterances in a row, and sometimes no speech at all (docs/log.md).
        gain_db=(-15.0, 10.0),
        max_tail=130,
        max_offset=64,
        join_prob=0.15,
        no_speech_prob=0.01,
        device_from=0.05,  # as the students
        wait_prob=0.25,
        context_reset=0.1,
    )


RECIPES = {"debug": debug, "commands": commands, "clean100": clean100, "full960": full960}
