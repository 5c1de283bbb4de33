"""Programs around the package: benchmark, speed, tables of the docs, examples."""
