"""The Gaussian process: model, posterior, acquisitions."""
