"""A prediction run: from paths to a folder of results, in worker processes, with a journal to go on from."""
