"""Methods for sources that share a pretrained initialisation: they merge the differences from it, task vectors."""
