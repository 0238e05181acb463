"""What to do about an error that a stranger's model raises, by the words of the error; knows no model."""

import re

# A pattern of what the error says -> the likely fix; {0}, {1}, ... are its groups.
FIXES = (
    (r"before Module\.__init__\(\) call", "make super().__init__() the first line of __init__"),
    (r"mat1 and mat2 shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)",
     "that layer takes {1} wide values and gets {0}: check the sizes (and their order) where __init__ makes it"),
    (r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)",
     "one value is {0} long where the other is {1}: check where each gets its size"),
    (r"normalized_shape=\[(\d+)\].*size\[.*?(\d+)\]", "the norm takes {0} wide values and gets {1}: make them equal"),
    (r"shape '\[([^\]]*)\]' is invalid for input of size (\d+)",
     "view or reshape asks for ({0}), which does not hold {1} values: take sizes from x.shape, not from constants"),
    (r"embed_dim must be divisible by num_heads|must be divisible", "choose a width that the number of heads divides"),
    (r"not compiled with CUDA|NVIDIA driver|No CUDA GPUs|CUDA-capable",
     "leave out .cuda(): make new tensors with device=x.device; who runs the model places it"),
    (r"indices.*scalar types: Long, Int; but got", "leave token ids whole numbers (int64) until the embedding"),
    (r"index out of range in self|index \d+ is out of bounds",
     "a table has fewer rows than the ids or positions asked for"),
    (r"missing the required \"forward\" function", "add def forward(self, input_ids) that returns the logits"),
    (r"has no attribute '(\w+)'", "create {0} in __init__, or correct its name"),
    (r"missing \d+ required (?:positional|keyword-only) arguments?: (.*)", "give {0} where that line calls it"),
    (r"unexpected keyword argument '(\w+)'", "take {0} as an argument, or leave it out"),
    (r"view size is not compatible", "use reshape, or .contiguous() before view"),
    (r"expected m1 and m2 to have the same dtype|must have the same dtype|Input type .* weight type",
     "do not fix a dtype inside forward: use the dtype of the weights"),
)  # fmt: skip


def likely_fix(error: BaseException) -> str:
    """The likely fix of an error in words; empty where its words say too little."""
    for pattern, fix in FIXES:
        if said := re.search(pattern, str(error)):
            return fix.format(*said.groups())
    return ""
