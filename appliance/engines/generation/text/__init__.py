"""Text and tokens: the tokenizer, the chat template, and where an answer's text ends."""
