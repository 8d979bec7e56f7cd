"""Comparisons on your own data: the compared methods, the paper's tables, cross-validation of options."""
