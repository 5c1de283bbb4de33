"""`python -m scripts.texts`."""

from scripts.texts.run import main

if __name__ == "__main__":
    main()
