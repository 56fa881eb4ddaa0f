"""The recorder's verbs, one module each; heavy imports wait inside them."""
