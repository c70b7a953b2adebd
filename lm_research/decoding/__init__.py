"""How a trained model speaks: filling masks and sampling."""
