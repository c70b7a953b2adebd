"""What is learned: layers, attention, blocks, encoders and decoders, heads, and the families made of them."""
