"""Options of the command line, and values that are wrong for each."""

from __future__ import annotations

__all__ = ["wrong_values"]

WHOLE = ("-7", "1.5", "abc", "", ".nan", ".inf", "1e400", "[]", "{}", "[1", "99999999999999999999999", "true", "null x")
NUMBER = ("-1", ".nan", ".inf", "abc", "", "{}", "-.inf", "1e400")
SHARE = ("-1", "1.5", ".nan", "abc", "[]")
SWITCH = ("x", "3", "[]", ".nan", "", "yess")
COUNTS = {
    "trainer": ("accumulate_grad_batches", "check_val_every_n_epoch", "num_nodes"),
    "model": ("inner_steps", "eval_inner_steps", "tasks_at_once", "support_chunk", "multi_step_loss"),
    "model.backbone": ("hidden", "in_channels", "image_size"),
    "data": ("shots", "queries", "ways", "variants", "tasks_per_batch", "train_tasks", "val_tasks", "test_tasks"),
}
"""At least 1."""
COUNTS_FROM_0 = {
    "trainer": ("max_steps", "max_epochs", "min_steps", "min_epochs", "log_every_n_steps", "num_sanity_val_steps",
                "reload_dataloaders_every_n_epochs"),
    "data": ("num_workers",),
    "data.options": ("unlabeled", "distractors"),
}  # fmt: skip
NUMBERS = {
    "model": ("inner_lr", "inner_clip_norm", "inner_weight_decay"),
    "trainer": ("gradient_clip_val",),
}
SHARES = {
    "model": ("memory_limit",),
    "trainer": ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches"),
}
SWITCHES = {
    "trainer": ("detect_anomaly", "enable_checkpointing", "inference_mode", "enable_progress_bar"),
    "model": ("first_order",),
    "data.options": ("balanced", "rotations"),
    "model.backbone": ("zero_head",),
}
STOPPING = "[{class_path: EarlyStopping, init_args: {%s}}]"
OTHERS = {
    "test_after_fit": SWITCH,
    "model": ("MAMLL", "metalearn.MAMLX", "os.system", "3", "[]", "nope.Net", "metalearn"),
    "model.backbone": ("Conv5", "nope.Net", "3", "metalearn.backbones.Conv5", "os.getcwd"),
    "model.loss": ("mee", "3", "cross entropy", "os"),
    "model.norm": ("batch", "3", "[]"),
    "model.memory": ("stor", "0"),
    "model.execution": ("fast", "-1"),
    "model.inner_optimizer": ("sgdd", "torch.optim.Nope", "3", ""),
    "model.outer_optimizer": ("Adamm", "torch.optim.Nope", "3", "{class_path: torch.optim.Adam, init_args: {lr: -1}}"),
    "model.outer_scheduler": ("cosin", "3"),
    "data": ("Omniglt", "GlyphDataModule", "3", "[]", "os.getcwd"),
    "data.seed": ("-1", "abc", "1.5", "99999999999999999999999"),
    "data.options": ("3", "{balancd: true}", "[]", "{unlabeled: -1}"),
    "seed_everything": ("-1", "99999999999", "abc", "1.5", "[]", ".nan"),
    "trainer.precision": ("17", "foo"),
    "trainer.accelerator": ("nonsense", "", "tpu"),
    "trainer.strategy": ("nonsense", "dpp", ""),
    "trainer.devices": ("abc", "0", "-7", "[]", "1.5", "[0,0]"),
    "trainer.max_time": ("bogus", "-1", "{}", "{hour: 3}", "1:2:3"),
    "trainer.val_check_interval": ("0", "-1", "1.5", "abc", ".nan", "0.0"),
    "trainer.fast_dev_run": ("-1", "abc", "1.5"),
    "trainer.profiler": ("nonsense", ""),
    "trainer.logger": ("nonsense", "{class_path: CSVLoger}", "3"),
    "trainer.plugins": ("nonsense", "3"),
    "trainer.callbacks": ("nonsense", "EarlyStopping", "[{class_path: EarlyStoping}]", STOPPING % "monito: x",
                          STOPPING % "monitor: val_acc", STOPPING % "monitor: val/acc, mode: best"),
    "trainer.gradient_clip_algorithm": ("foo", ""),
    "trainer": ("3", "[]", "{max_step: 3}", "nofile.yaml", "["),
    "run_name": ("", "../../x", "a/b", "x" * 300, "\x1b[31m", "..", "a\nb", "\udcff"),
    "start_from": ("", "nope.ckpt", "..", "/dev/zero", "maml_glyphs", "3"),
    "config": ("nope", "", "x" * 300, "maml_glyphs", "..", "/dev/zero", "a\x00b"),
}  # fmt: skip
MISSPELT = ("trainer.max_step", "trainer.max_epoch", "trainer.Max_steps", "max_steps", "data.way", "data.shot", "data.waays",
            "model.inner_step", "model.inner_stps", "model.backbone.hiden", "seed", "seed_everythin", "run", "confi", "modle",
            "trainer.nope.x", "nonsense")  # fmt: skip


def wrong_values() -> list[tuple[str, str]]:
    """Pairs of an option and a value that is wrong for it."""
    kinds = ((COUNTS, (*WHOLE, "0")), (COUNTS_FROM_0, WHOLE), (NUMBERS, NUMBER), (SHARES, SHARE), (SWITCHES, SWITCH))
    found = [
        (f"{section}.{name}", value)
        for options, values in kinds
        for section, names in options.items()
        for name in names
        for value in values
    ]
    found += [(name, value) for name, values in OTHERS.items() for value in values]
    return found + [(name, "3") for name in MISSPELT]
