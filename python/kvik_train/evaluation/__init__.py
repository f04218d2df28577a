"""What a trained model is worth: scores on held-out data, each beside a simple baseline."""
