"""The methods that WSCXR is compared with, one file each, on the same features, bank and operators."""
