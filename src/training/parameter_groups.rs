//! Which parameters weight decay applies to (upstream: `filter_params` in `utils/lr_control.py`; upstream.md, C2).

/// Parameters whose name contains one of these never decay.
const NEVER: [&str; 14] = [
    "cls_token",
    "start_token",
    "task_token",
    "cfg_uncond",
    "pos_embed",
    "pos_1LC",
    "pos_start",
    "start_pos",
    "lvl_embed",
    "gamma",
    "beta",
    "ada_gss",
    "moe_bias",
    "scale_mul",
];

/// Whether weight decay applies: not to vectors, biases, and tables of positions, levels and scales.
pub fn decays(name: &str, shape: &[usize]) -> bool {
    shape.len() != 1 && !name.ends_with("bias") && !NEVER.iter().any(|part| name.contains(part))
}
