"""QuPath's SAM extension, unchanged: its pictures, prompts, weights list and answers (docs/QUPATH.md)."""
