from todm import stages as stages
from todm.device.load import load as load

__all__: list[str]
__version__: str
