"""Recipes: one complete configuration of all stages, by name.

The one place where the settings of a modality and those of the stages come together.
"""

import dataclasses

from todm.asr.augment import AugmentConfig
from todm.asr.config import AsrConfig
from todm.asr.corpora.config import DataConfig, RoomConfig
from todm.asr.data import LoaderConfig
from todm.asr.encoder import EncoderConfig
from todm.asr.model import RnntConfig
from todm.asr.objective import ObjectiveConfig
from todm.asr.tokens import TokensConfig
from todm.config import Config
from todm.errors import ConfigError
from todm.supernet.space import SpaceConfig
from todm.train.loop import TrainConfig
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
        raise ConfigError(f"there is no config {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()


def commands() -> Recipe:
    """A voice-command recogniser from synthetic speech, sized for two CPU cores and half an hour."""
    return Recipe(
        name="commands",
        asr=AsrConfig(
            data=DataConfig(
                # Noise costs updates more than anything else (docs/log.md): half an hour affords this.
                room=RoomConfig(
                    clean=0.5,
                    room=0.5,
                    noise=0.6,
                    snr_db=(12.0, 35.0),
                    rt60=(0.1, 0.3),
                    direct_db=(3.0, 15.0),
                ),
                # Whole words: a closed vocabulary of 76, each said 55 times or more (docs/log.md).
                tokens=TokensConfig(vocab_size=160, max_piece_length=16),
            ),
            loader=LoaderConfig(batch_size=8),
            augment=AugmentConfig(
                gain_db=(-4.0, 4.0),
                noise_prob=0.0,
                max_tail=60,
                max_offset=20,
                join_prob=0.05,
                no_speech_prob=0.06,
                spec_prob=0.3,
                num_time_masks=2,
                time_mask_frames=12,
                time_mask_share=0.1,
                freq_mask_bins=12,
            ),
            model=RnntConfig(joiner_dim=96, encoder=EncoderConfig(d_model=96, dropout=0.05)),
            space=SpaceConfig(
                depths=(3, 4, 5), widths={"ffn": (64, 128, 256, 384), "pairs": (2, 3, 4)}
            ),
            objective=ObjectiveConfig(
                align_until=0.1, ctc_until=0.5, distill_from=0.4, distill_full=0.5
            ),
            chunks=(16,),
        ),
        train=TrainConfig(
            num_updates=5000,
            sandwich_from=0.4,
            num_threads=1,
            num_processes=2,
            optim=OptimConfig(lr=0.04),
            schedule=ScheduleConfig(kind="cosine"),
        ),
    )


def debug() -> Recipe:
    """Every stage in a minute or two; the result is no recogniser."""
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
    """LibriSpeech train-clean-100 and corpora of that size, on one GPU."""
    return Recipe(
        name="clean100",
        asr=AsrConfig(
            data=DataConfig(tokens=TokensConfig(vocab_size=500, max_piece_length=16)),
            loader=LoaderConfig(batch_size=None, max_frames=60_000),
            augment=AugmentConfig(warp_frames=80),
            model=RnntConfig(
                joiner_dim=512, encoder=EncoderConfig(d_model=256, state=16, dropout=0.15)
            ),
            space=SpaceConfig(
                depths=(6, 8, 10, 12), widths={"ffn": (256, 512, 768, 1024), "pairs": (4, 6, 8)}
            ),
            objective=ObjectiveConfig(
                topology="standard", ctc_until=0.1, distill_from=0.1, distill_full=0.15
            ),
        ),
        train=TrainConfig(
            num_updates=60_000, sandwich_from=0.05, eval_every=0.02, optim=OptimConfig(lr=0.04)
        ),
    )


def full960() -> Recipe:
    """LibriSpeech 960 h, on several GPUs."""
    base = clean100()
    asr = base.asr.replace(
        loader=LoaderConfig(feature_mode="on_the_fly", batch_size=None, max_frames=100_000),
        model=RnntConfig(joiner_dim=512, encoder=EncoderConfig(d_model=512, state=16, dropout=0.1)),
        space=SpaceConfig(
            depths=(8, 10, 12, 14, 16),
            widths={"ffn": (512, 1024, 1536, 2048), "pairs": (8, 12, 16)},
        ),
    )
    return Recipe(
        name="full960",
        asr=asr,
        train=base.train.replace(num_updates=250_000, optim=OptimConfig(lr=0.045)),
    )


RECIPES = {"debug": debug, "commands": commands, "clean100": clean100, "full960": full960}
