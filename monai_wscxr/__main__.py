"""`python -m monai_wscxr`: the same as the command `monai-wscxr`."""

from monai_wscxr.commands.main import main

if __name__ == "__main__":
    main()
