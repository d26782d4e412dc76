"""What several commands share: options, results, figures, the networks and runs they compare."""
