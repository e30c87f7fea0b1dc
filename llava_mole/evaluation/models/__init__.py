"""What answers a benchmark: our models, Hugging Face's, a server, and two that do not look."""
