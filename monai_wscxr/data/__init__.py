"""Radiographs in: files, datalists and synthetic phantoms."""
