"""Who asked what of which slide, when, from where, and what came of it, told to those who have to know."""
