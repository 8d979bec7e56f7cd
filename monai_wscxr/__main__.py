"""`python -m monai_wscxr ...`."""

from monai_wscxr.cli import main

if __name__ == "__main__":
    main()
