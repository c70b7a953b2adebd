"""Published sizes of T5."""

# Raffel et al. 2019, section 3.7: layers per stack, width, heads, head width, feed-forward width.
_TABLE = {
    "small": (6, 512, 8, 64, 2048),
    "base": (12, 768, 12, 64, 3072),
    "large": (24, 1024, 16, 64, 4096),
    "3b": (24, 1024, 32, 128, 16384),
    "11b": (24, 1024, 128, 128, 65536),
    # The released v1.1 checkpoints; small has 6 heads in 8 layers, xl and xxl are wider and their layers narrower.
    "v1.1_small": (8, 512, 6, 64, 1024),
    "v1.1_base": (12, 768, 12, 64, 2048),
    "v1.1_large": (24, 1024, 16, 64, 2816),
    "v1.1_xl": (24, 2048, 32, 64, 5120),
    "v1.1_xxl": (24, 4096, 64, 64, 10240),
}
SIZES = {
    name: dict(
        variant="v1.1" if name.startswith("v1.1") else "v1.0",
        num_layers=n,
        hidden_size=d,
        num_heads=h,
        head_size=k,
        intermediate_size=f,
    )
    for name, (n, d, h, k, f) in _TABLE.items()
}
