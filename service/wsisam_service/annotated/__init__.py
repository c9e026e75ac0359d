"""Annotated tissue for training and evaluation: read, checked, cut into samples."""
