"""Entry of `python -m metrics`."""

from .measure import main

if __name__ == "__main__":
    main()
