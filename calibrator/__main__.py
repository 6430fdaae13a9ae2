"""`python -m calibrator`, and the console script."""

from calibrator.cli import main

if __name__ == "__main__":
    main()
