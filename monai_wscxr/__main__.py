"""`python -m monai_wscxr ...`."""

from monai_wscxr.commands.main import main

if __name__ == "__main__":
    main()
