"""Label a few radiographs, retrain in seconds, see the archive in a new order: the MONAI Label app and what it stands on."""
