"""Update rules that are networks, and how they are meta-trained."""
