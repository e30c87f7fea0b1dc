"""Multiple-choice evaluation: items, prompts, option likelihoods, statistics, reports."""
