"""`python -m scripts.natural`."""

from scripts.natural.run import main

if __name__ == "__main__":
    main()
