"""`python -m alloytune`: the command line."""

from alloytune.cli.main import main

if __name__ == "__main__":
    main()
