"""From a trained network to files that other runtimes run."""
