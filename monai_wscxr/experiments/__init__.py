"""Experiments on your own data: compared methods, the tables of the paper, cross-validation of training options."""
