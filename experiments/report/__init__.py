"""What people read of runs: one document model, rendered as HTML, as Markdown and in the terminal."""
