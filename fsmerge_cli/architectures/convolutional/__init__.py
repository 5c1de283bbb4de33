"""What families of convolutional networks have in common."""
