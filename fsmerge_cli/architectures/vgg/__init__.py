"""VGGs of timm and torchvision."""
