"""`python -m scripts.benchmark`."""

from scripts.benchmark.run import main

if __name__ == "__main__":
    main()
