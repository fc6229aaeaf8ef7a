def windows(text, tokenizer, *, max_tokens, overlap):
    return [(0, len(text))]
