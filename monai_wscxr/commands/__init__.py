"""The command `monai-wscxr`: one module per command, listed in `main`."""
