"""``python -m mixwright``: the same program as the ``mixwright`` console script."""

from mixwright.cli import main

if __name__ == "__main__":
    main()
