"""Shared by all packages: errors, options, progress, seeding, hardware, atomic writing."""
