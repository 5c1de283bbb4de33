"""`python -m scripts.convnets`: see run.py."""

from scripts.convnets.run import main

if __name__ == "__main__":
    main()
