"""Text in, token batches out: corpora, splits, tokenizer, cache, pipeline."""
