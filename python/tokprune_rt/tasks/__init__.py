"""Task heads: what logits mean. Each module holds one public function that `Model` calls."""
