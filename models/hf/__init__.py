"""Real models: any supported causal language model of Hugging Face's transformers, on the edge and in the cloud."""
