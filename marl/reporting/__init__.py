"""What is told of a run, and drawn of several."""
