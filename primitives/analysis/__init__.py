"""What can be known of a program without training it."""
