"""A class for every pixel: a vision transformer whose patches are read out by one linear layer.

The linear decoder of Segmenter (arXiv 2105.05633, 3.2), with the outputs of a patch laid out over its
own pixels in place of an interpolation.
"""

from torch import Tensor, nn


class Segmenter(nn.Module):
    """Patches of an encoder to classes of pixels. H and W are of an image."""

    def __init__(self, encoder: nn.Module, *, width: int, side: int, num_classes: int) -> None:
        """See the arguments.

        Args:
            encoder: timm's VisionTransformer without a head.
            width: of its tokens.
            side: of its patches, in pixels.
            num_classes: of a pixel.
        """
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, num_classes * side * side)
        self.spread = nn.PixelShuffle(side)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, [B, classes, H, W]."""
        side = self.spread.upscale_factor
        rows, columns = (length // side for length in images_BCHW.shape[-2:])
        tokens_BTD: Tensor = self.encoder.forward_features(images_BCHW)  # pyright: ignore[reportCallIssue]
        # Class and register tokens come first.
        patches_BPD = self.head(tokens_BTD[:, -rows * columns :])
        return self.spread(patches_BPD.mT.unflatten(2, (rows, columns)))
