"""Slides: which there are (`catalogue`), readers (`reader`, `tiff`, `picture`), and pixels of views (`pixels`)."""
