"""ConvNeXts of timm and torchvision."""
