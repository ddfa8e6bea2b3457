"""Models as the stages run them: where their weights are, and what they say of themselves."""
