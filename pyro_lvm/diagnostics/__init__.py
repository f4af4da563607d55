"""What a fit says, in the form that other tools read."""
