"""`python -m cruxtune` is `cruxtune`: launchers of several processes start modules."""

from cruxtune.cli import main

if __name__ == "__main__":
    main()
