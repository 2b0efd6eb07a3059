"""Vision: timm's vision transformers, for classification and for segmentation, under compression."""
