"""Pictures on their way in, and result files on their way out."""
