"""`todm import` of a multi-modal model: a directory of transformers becomes an artifact, offline.

The artifact holds the weights in float32 and the inputs that the model is calibrated, trained and
evaluated on. Weights are safetensors; no pickle is read, and no code of the directory is run.
"""

from pathlib import Path

import torch

from todm.artifact import Artifact
from todm.errors import ArtifactError, ConfigError, CorpusError
from todm.llm.checkpoint import read_config, weight_files
from todm.multimodal.adapter import MultimodalAdapter, model_class, read_inputs


def import_checkpoint(source: Path, out: Path, *, data: Path, architecture: str = "") -> Artifact:
    """Make an artifact of kind `model`.

    Args:
        source: the directory, as `save_pretrained` writes it.
        out: the artifact's place.
        data: a .safetensors of inputs by name, as the model's processor makes them, each with an item
            per row: `input_ids`, and pixels or features.
        architecture: a class of transformers; by default the one that config.json names.

    Raises:
        ArtifactError: a directory that is damaged, quantised, holds pickles, or lacks weights.
        ConfigError: an architecture that transformers does not have.
        CorpusError: inputs that cannot be read, or that the model does not take.
        MissingExtra: transformers is not installed.
    """
    if not source.is_dir():
        raise ArtifactError(f"{source} is not a directory: give one that save_pretrained wrote")
    described = read_config(source)
    if "quantization_config" in described:
        raise ArtifactError(f"{source} is quantised already: give the model it was made of")
    names = described.get("architectures")
    name = architecture or (names[0] if isinstance(names, list) and names else "")
    if not name:
        raise ConfigError(
            f"{source} does not say its architecture: name it, as in  --architecture "
            "LlavaForConditionalGeneration"
        )
    cls = model_class(name)
    inputs = read_inputs(data)
    weight_files(source)  # refuses pickles and incomplete directories
    try:
        model, loading = cls.from_pretrained(
            str(source),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # noqa: BLE001 - every config and model raises its own
        raise ArtifactError(f"{source} is no {name}: {' '.join(str(error).split())}") from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(loading[what], key=str):
            kind = what.removesuffix("_keys")
            raise ArtifactError(f"{source} is no {name}: {keys[0]} is {kind} among its weights")
    adapter = MultimodalAdapter(model.eval(), inputs)
    try:
        adapter.run(model, {key: tensor[:1] for key, tensor in inputs.items()})
    except Exception as error:  # noqa: BLE001 - every model raises its own
        raise CorpusError(
            f"{name} does not take the inputs of {data} ({' '.join(str(error).split())}): write what its "
            "processor makes"
        ) from None
    return adapter.save(out)
