"""Images: data sets, decoding, augmentation."""
