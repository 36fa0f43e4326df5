"""What people read of runs: reports as HTML and Markdown, pictures, and lists."""
