"""One request from prompts to outlines (`segmenter`), and what it plans and offers."""
