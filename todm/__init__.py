"""todm: train one RNN-T supernet once, deploy a subnet of it to every device."""

__version__ = "0.1.0"
