"""Label a few radiographs, retrain in seconds and rank the archive again: a MONAI Label app with a web page of its own."""
