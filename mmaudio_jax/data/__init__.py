"""Media files, feature sets and the stream of training examples."""
