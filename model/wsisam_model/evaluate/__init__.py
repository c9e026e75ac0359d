"""Scores of adapters against ground truth: Dice, boundary F, clicks, intervals and reports. Knows no slides."""
