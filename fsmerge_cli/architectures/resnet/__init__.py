"""ResNets of timm and torchvision."""
