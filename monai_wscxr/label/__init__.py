"""The MONAI Label app: find suspicious radiographs, label a few, retrain in seconds."""
