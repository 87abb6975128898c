"""The names that a config chooses from, in one plain module: a mistyped one is refused before JAX is imported."""

DTYPES = ("float32", "bfloat16")  # of the network's computation
CROPS = ("pad32", "frac", "none")  # of the evaluation
EVALUATIONS = ("auto", "crop", "resize")
RESIZES = ("bicubic", "antialias")  # of photographs in evaluation
ON_BAD_IMAGE = ("error", "skip")
ORDERS = ("global", "sharded")  # of training examples
SAMPLINGS = ("natural", "balanced")  # what comes equally often: every image, or every class
DUPLICATES = ("equal", "similar", "off")  # what is looked for in two splits
INTERPOLATIONS = ("bilinear", "bicubic")

BATCH_NORM_MODES = ("frozen", "train")
OPTIMIZERS = ("sgd", "rmsprop", "adam", "adamw", "lars", "lamb")
SCHEDULES = ("constant", "cosine", "exponential", "plateau")
PARTITION_MODES = ("pjit", "pmap")
SHARDED = ("state", "optimizer")  # what of a state fsdp shards

CACHE_PLACES = ("memory", "disk")
CACHE_DTYPES = ("float16", "bfloat16", "float32")
LOWERINGS = ("auto", "platform", "native", "kernels")  # of convolutions and batch norm
