"""Views into device memory, prompts into decoder calls: what a process with a model does."""
