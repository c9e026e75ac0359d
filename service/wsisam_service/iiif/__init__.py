"""The IIIF Image API over slides: addresses and the pictures behind them."""
