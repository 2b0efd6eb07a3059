"""k2, for which pip finds no wheel by itself: imported here only, with a message on how to get it."""

import importlib
from types import ModuleType

import torch

from todm.errors import TodmError

_INDEX = "https://k2-fsa.github.io/k2"


class MissingK2(TodmError):
    """k2 is not installed, or was built for another torch; the message says where its wheels are."""

    def __init__(self, purpose: str) -> None:
        version, cuda = torch.__version__.partition("+")[0], torch.version.cuda
        build = f"{f'cuda{cuda}' if cuda else 'cpu'}.torch{version}"
        page = f"{_INDEX}/{'cuda' if cuda else 'cpu'}.html"
        super().__init__(
            f"{purpose} needs the package 'k2' built for torch {version}, which PyPI does not have: take "
            f"the newest version for your Python that ends in +{build} from {page}, and run"
            f"  pip install k2==VERSION -f {page}  with the full version, such as 1.24.4.dev...+{build}"
        )


def load_k2(purpose: str) -> ModuleType:
    """The package.

    Args:
        purpose: what needs it, the subject of the message.

    Raises:
        MissingK2: it is not installed, or not for this torch.
    """
    try:
        return importlib.import_module("k2")
    except (ImportError, OSError):  # a wheel for another torch fails to load its libraries
        raise MissingK2(purpose) from None
