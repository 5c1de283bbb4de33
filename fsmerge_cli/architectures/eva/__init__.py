"""timm's Eva: EVA-02, DINOv3, Perception Encoder and other rotary vision transformers."""
