"""timm's VisionTransformer, in all variants that can be merged."""
