"""`python -m scripts.features`."""

from scripts.features.run import main

if __name__ == "__main__":
    main()
