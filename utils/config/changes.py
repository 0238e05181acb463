"""What may change while a run goes on, and what that means: every setting of a run is in one of these groups."""

# What is shown, looked at or kept: it changes no weight.
SHOWN = {
    "train.eval_every", "train.eval_batches", "train.save_every", "train.log_every", "train.sample_every",
    "train.sample_prompt", "train.sample_tokens", "train.answers_every_eval", "train.stats_every", "train.profile",
    "train.patience", "train.memory_limit_gb", "train.activation_checkpointing", "checkpoint.keep_last",
    "checkpoint.keep_best",
}  # fmt: skip
# How sums are rounded; what a run was made with tells that better than these words do.
ROUNDING = {"train.device", "train.threads", "train.precision", "train.compile", "train.deterministic"}
HORIZON = {"train.max_steps", "train.epochs"}  # where it ends
SPLIT = {"train.batch_size", "train.grad_accum_steps"}  # free to change as long as their product stays
# Another model, text, order of it, or kind of optimizer (whose state would be of no use) is another run.
FIXED = ("model.", "data.", "train.seed", "train.optimizer")
