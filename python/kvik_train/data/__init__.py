"""From text to batches: corpora, token files and the sampler that draws windows from them."""
