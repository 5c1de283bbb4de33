"""What every room uses: errors, options, progress, seeds, hardware, writing."""
